//! `tollgate man`.

use std::io;

use super::whole_parser;

/// Prints the manual: a page for tollgate, then one for each command
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: tollgate man > tollgate.1 && man ./tollgate.1")]
pub(super) struct Man {}

impl Man {
    pub(super) fn run(&self) -> anyhow::Result<String> {
        let mut parser = whole_parser().disable_help_subcommand(true);
        parser.build();
        let mut pages = vec![];
        write_pages(&parser, &mut pages)?;
        Ok(String::from_utf8_lossy(&pages).into_owned())
    }
}

fn write_pages(command: &clap::Command, pages: &mut Vec<u8>) -> io::Result<()> {
    // The name of a command within its group, so that its page is found and its heading says which it is.
    let name = command
        .get_display_name()
        .unwrap_or(command.get_name())
        .to_owned();
    // The settings are listed once, on the first page.
    let is_first = pages.is_empty();
    let page = command.clone().name(name).mut_args(|argument| {
        let is_setting = argument.get_help_heading() == Some("Settings");
        argument.hide(is_setting && !is_first)
    });
    clap_mangen::Man::new(page).render(pages)?;
    command
        .get_subcommands()
        .try_for_each(|subcommand| write_pages(subcommand, pages))
}
