//! `tollgate completions`.

use super::whole_parser;

/// Prints a shell's completion script
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: tollgate completions bash > /etc/bash_completion.d/tollgate")]
pub(super) struct Completions {
    /// The shell
    shell: clap_complete::Shell,
}

impl Completions {
    pub(super) fn run(&self) -> String {
        let mut script = vec![];
        clap_complete::generate(self.shell, &mut whole_parser(), "tollgate", &mut script);
        String::from_utf8_lossy(&script).into_owned()
    }
}
