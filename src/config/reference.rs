//! The settings page of the reference, written from the rows.

use std::fmt::Write as _;

use super::settings::{Default, Kind, SETTINGS, Setting};

/// `docs/reference/configuration.md`.
#[must_use]
pub fn markdown() -> String {
    let mut page = String::from(
        "# Configuration\n\n\
         <!-- Written by `make generate` from src/config/settings.rs; change it there. -->\n\n\
         A setting is a variable, a flag of every command, and a line of `tollgate config`.\n\
         A flag wins over the environment, the environment over `.env` in the working directory, and that over the\n\
         default. An empty value stands for the default. Switches are `--flag` or `--flag=false`; as variables they\n\
         take `true`, `false`, `1`, `0`, `yes` or `no`. Secrets have no flag, since an argument is public.\n\
         In `.env`, a value is taken as it stands, `$` included; quotes are needed around spaces and `#`.\n\n\
         | variable | flag | default | what it does | accepts |\n\
         | --- | --- | --- | --- | --- |\n",
    );
    for setting in SETTINGS {
        let [default, description, accepts] = [
            default_of(setting),
            setting.description.to_owned(),
            setting.accepts.to_owned(),
        ]
        .map(|cell| cell.replace('|', "\\|"));
        let flag = setting
            .flag()
            .map_or("–".to_owned(), |flag| format!("`--{flag}`"));
        let secret = if setting.kind == Kind::Secret {
            " (secret)"
        } else {
            ""
        };
        let name = setting.name;
        writeln!(
            page,
            "| `{name}`{secret} | {flag} | {default} | {description} | {accepts} |"
        )
        .expect("writing to a String never fails");
    }
    page
}

fn default_of(setting: &Setting) -> String {
    match setting.default {
        Default::Value(value) => format!("`{value}`"),
        Default::None(meaning) => format!("({meaning})"),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    #[test]
    fn generated_configuration_page_is_up_to_date() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reference/configuration.md");
        if std::env::var_os("UPDATE_GENERATED").is_some() {
            fs::write(&path, markdown()).unwrap();
        }
        let on_disk = fs::read_to_string(&path).unwrap_or_default();
        assert!(
            on_disk == markdown(),
            "docs/reference/configuration.md is out of date; run `make generate`"
        );
    }
}
