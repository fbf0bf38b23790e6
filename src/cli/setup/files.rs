//! Files that the wizard writes: for their owner alone, whole or not at all; and `.env`, in which everything that is
//! not asked stays as it was.

use std::{
    collections::HashMap,
    io::{self, Write as _},
    path::Path,
};

use anyhow::ensure;

use crate::{config::dot_env, draft::Draft};

/// A change of one variable; `None` takes it away.
pub(super) type EnvChange = (String, Option<String>);

/// Replaces the file whole, with mode 0600. A link stays one: what it points to is replaced.
pub(super) fn write_private(path: &Path, text: &str) -> io::Result<()> {
    prepare(path, text)?.take_its_place()
}

/// Writes a file that is whole, and not yet in its place.
pub(super) fn prepare(path: &Path, text: &str) -> io::Result<Draft> {
    let mut draft = Draft::of(path, 0o600)?;
    draft.write_all(text.as_bytes())?;
    Ok(draft)
}

/// `.env` with the changes made; every other line and comment as it was.
///
/// # Errors
/// If the text would not be read back as meant; nothing is lost then.
pub(super) fn edited(text: &str, changes: &[EnvChange]) -> anyhow::Result<String> {
    let mut lines = logical_lines(text);
    for (name, value) in changes {
        // Of a name given twice the last counts.
        let place = lines.iter().rposition(|line| name_of(line) == Some(name));
        match (place, value) {
            (Some(index), Some(value)) => lines[index] = replaced(&lines[index], name, value),
            (None, Some(value)) => {
                if let Some(last) = lines.last_mut().filter(|last| !last.ends_with('\n')) {
                    last.push('\n');
                }
                lines.push(format!("{name}={}\n", quoted(value)));
            }
            (_, None) => lines.retain(|line| name_of(line) != Some(name)),
        }
    }
    let edited: String = lines.concat();
    let mut meant = variables(text)?;
    for (name, value) in changes {
        match value {
            Some(value) => meant.insert(name.clone(), value.clone()),
            None => meant.remove(name),
        };
    }
    ensure!(
        variables(&edited)? == meant,
        ".env holds lines that can't be changed safely; set {} by hand",
        changes
            .iter()
            .map(|(name, _)| name.as_str())
            .collect::<Vec<_>>()
            .join(", ")
    );
    Ok(edited)
}

fn variables(text: &str) -> anyhow::Result<HashMap<String, String>> {
    let read: Result<_, _> = dot_env::variables(text).collect();
    read.map_err(|_| anyhow::anyhow!(".env can't be read"))
}

/// Lines with their ends; a value in quotes that runs over several is one.
fn logical_lines(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    let mut open: Option<char> = None;
    for line in text.split_inclusive('\n') {
        let was_open = open.is_some();
        open = match open {
            Some(quote) => Some(quote).filter(|quote| !line.contains(*quote)),
            None => opened(line),
        };
        match lines.last_mut().filter(|_| was_open) {
            Some(last) => last.push_str(line),
            None => lines.push(line.to_owned()),
        }
    }
    lines
}

/// The quote that a line's value begins with and does not end.
fn opened(line: &str) -> Option<char> {
    name_of(line)?;
    let value = line.split_once('=')?.1.trim_start();
    let quote = value
        .chars()
        .next()
        .filter(|first| "'\"".contains(*first))?;
    (!value[1..].contains(quote)).then_some(quote)
}

/// The variable that a line sets; `None` for comments and empty lines.
fn name_of(line: &str) -> Option<&str> {
    let line = line.trim_start();
    let line = line.strip_prefix("export ").unwrap_or(line).trim_start();
    let name = line.split_once('=')?.0.trim_end();
    let is_name = !name.is_empty()
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"_.".contains(&byte));
    is_name.then_some(name)
}

/// The line with another value; `export` before it and the comment behind it stay.
fn replaced(line: &str, name: &str, value: &str) -> String {
    let is_exported = line.trim_start().starts_with("export ");
    let export = if is_exported { "export " } else { "" };
    let comment = comment_of(line).map_or(String::new(), |comment| format!(" {comment}"));
    format!("{export}{name}={}{comment}\n", quoted(value))
}

fn comment_of(line: &str) -> Option<&str> {
    let value = line.split_once('=')?.1.trim();
    let rest = match value.chars().next() {
        Some(quote @ ('\'' | '"')) => value[1..].split_once(quote)?.1,
        Some('#') => return None,
        _ => value,
    };
    let start = rest
        .find(" #")
        .or_else(|| rest.starts_with('#').then_some(0))?;
    Some(rest[start..].trim())
}

/// The value as `.env` takes it: bare if it is plain, else in quotes that nothing is replaced in.
fn quoted(value: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_./:@,+-=%?&".contains(c);
    if value.chars().all(is_plain) {
        value.to_owned()
    } else if value.contains('\'') {
        let escaped = value
            .replace('\\', r"\\")
            .replace('"', "\\\"")
            .replace('$', r"\$");
        format!("\"{escaped}\"")
    } else {
        format!("'{value}'")
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use super::*;

    fn set(name: &str, value: &str) -> EnvChange {
        (name.to_owned(), Some(value.to_owned()))
    }

    #[test]
    fn other_lines_and_comments_stay() {
        let before = "# mine\nOTHER=\"two words\" # tail\n\nexport A=1 # why\nLONG=\"one\nA=no\ntwo\"\nB='x' # y\nA=2";
        let changes = [
            set("A", "3"),
            set("B", "a b"),
            set("NEW", "x#y"),
            ("OTHER".to_owned(), None),
        ];
        assert_eq!(
            edited(before, &changes).unwrap(),
            "# mine\n\nexport A=1 # why\nLONG=\"one\nA=no\ntwo\"\nB='a b' # y\nA=3\nNEW='x#y'\n"
        );
    }

    #[test]
    fn every_value_is_read_back_as_it_was_meant() {
        for value in [
            "plain",
            "",
            "a b",
            "it's",
            "p$HOME",
            "it's ${HOME}",
            "it's $5 \"q\" \\",
            "#x",
            "sk-a=b",
            "ü",
        ] {
            let text = edited("X=1\n", &[set("X", value), set("Y", value)]).unwrap();
            let read = variables(&text).unwrap();
            assert_eq!(
                (read["X"].as_str(), read["Y"].as_str()),
                (value, value),
                "{text}"
            );
        }
    }

    #[test]
    fn a_dollar_that_somebody_typed_stays() {
        let before = "TOKEN=abc$def12345678\nA=1\n";
        let after = edited(before, &[set("A", "2")]).unwrap();
        assert_eq!(after, "TOKEN=abc$def12345678\nA=2\n");
        assert_eq!(variables(&after).unwrap()["TOKEN"], "abc$def12345678");
    }

    #[test]
    fn the_file_is_for_its_owner_alone_and_a_link_stays_one() {
        let directory = tempfile::tempdir().unwrap();
        let (file, link) = (directory.path().join("real"), directory.path().join(".env"));
        fs::write(&file, "A=1\n").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        std::os::unix::fs::symlink("real", &link).unwrap();
        write_private(&link, "A=2\n").unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "A=2\n");
        assert_eq!(
            fs::metadata(&file).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    }
}
