//! Asking before something is destroyed.

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};

use anyhow::{bail, ensure};

/// Asks on the terminal; where there is none, refuses and says how to answer beforehand.
///
/// # Errors
/// Unless the answer is yes.
pub(super) fn confirm(question: &str) -> anyhow::Result<()> {
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        bail!("{question} There is no terminal to ask on; add --yes to do it");
    }
    write!(io::stderr(), "{question} [y/N] ")?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    let is_yes = matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes");
    ensure!(is_yes, "nothing was changed");
    Ok(())
}
