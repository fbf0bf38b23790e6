//! `usage show`, as people see it.

use super::{Shell, screen::Screen};

const ESCAPE: char = '\u{1b}';

/// Three tenants: one at ease, one near its limit, one past it.
fn shell() -> Shell {
    let shell = Shell::new().with("ENABLE_USAGE_GUARDRAILS", "true");
    shell.json("plan create starter --name Starter --preset starter");
    for (slug, used) in [("calm", 15), ("near", 130), ("over", 250)] {
        shell.json(&format!(
            "tenant create {slug} --name {slug} --plan starter"
        ));
        record(&shell, slug, used);
    }
    shell
}

fn record(shell: &Shell, slug: &str, used: u32) {
    let recorded = shell.line(&format!(
        "usage record --tenant {slug} --feature messages --quantity {used} --idempotency-key {slug}-{used}"
    ));
    assert_eq!(recorded.code, 0, "{recorded:?}");
}

/// The row of a tenant's messages, its cells parted by single spaces.
fn row(text: &str, slug: &str) -> String {
    let is_it = |line: &&str| line.contains(slug) && line.contains("messages");
    let line = text.lines().find(is_it);
    let line = line.unwrap_or_else(|| panic!("no row of {slug}:\n{text}"));
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn a_table_says_how_much_is_used_how_it_stands_and_when_it_resets() {
    let shell = shell();
    let table = shell.line("usage show --output table");
    assert_eq!(table.code, 0, "{table:?}");
    for (slug, expected) in [
        (
            "calm",
            "calm messages tenant period 15 0 150 200 185 █░░░░░░░░░ 7.50 % ok 20",
        ),
        (
            "near",
            "near messages tenant period 130 0 150 200 70 ███████░░░ 65.00 % approaching 20",
        ),
        (
            "over",
            "over messages tenant period 250 0 150 200 0 ██████████ 125.00 % hard limit exceeded 20",
        ),
    ] {
        let row = row(&table.stdout, slug);
        assert!(row.starts_with(expected), "{row}");
    }
    assert!(!table.stdout.contains(ESCAPE), "{table:?}");
    let csv = shell.line("usage show --tenant near --output csv");
    assert!(
        csv.stdout
            .contains("near,messages,tenant,period,130,0,150,200,70,65.00,approaching,20"),
        "{csv:?}"
    );
}

#[test]
fn colours_tell_how_it_stands_on_a_terminal_that_wants_them() {
    let screen = Screen::of(shell(), "usage show");
    screen.says("exit code 0");
    let coloured = screen.coloured();
    // Green, yellow and red: all of the bar and the words, and nothing else of the row.
    for (slug, colour, words) in [
        ("calm", 10, "ok"),
        ("near", 11, "approaching"),
        ("over", 9, "hard limit exceeded"),
    ] {
        let row = row(&coloured, slug);
        let (_, toned) = row
            .split_once(&format!("{ESCAPE}[38;5;{colour}m"))
            .unwrap_or_else(|| panic!("{slug} has another colour: {row:?}"));
        let (toned, rest) = toned.split_once(&format!("{ESCAPE}[39m")).unwrap();
        assert!(toned.ends_with(&format!("% {words} ")), "{row:?}");
        assert!(!rest.contains(ESCAPE), "{row:?}");
    }
    assert!(coloured.contains("\u{1b}[1m"), "headings are bold");
}

#[test]
fn no_color_sends_none_to_a_terminal_either() {
    let commands = [
        (shell(), "usage show"),
        (Shell::new(), "doctor"),
        (Shell::new(), "config"),
        (Shell::new(), "plan list"),
        (Shell::new(), "--help"),
        (Shell::new(), "frobnicate"),
    ];
    for (shell, words) in commands {
        let screen = Screen::of(shell.with("NO_COLOR", "1"), words);
        screen.says("exit code ");
        let shown = screen.coloured();
        assert!(!shown.contains(ESCAPE), "{words}:\n{shown:?}");
        assert!(shown.lines().count() > 1, "{words} shows something");
    }
}

#[test]
fn a_watched_table_is_written_over_in_place() {
    let screen = Screen::of(shell(), "usage show --tenant near --watch");
    screen.says("65.00 %");
    record(&screen.shell, "near", 40);
    screen.says("85.00 %").says("soft limit exceeded");
    let text = screen.text();
    assert!(!text.contains("65.00 %"), "{text}");
    assert_eq!(text.matches("messages").count(), 1, "{text}");
    assert_eq!(screen.lines_gone(), 0, "nothing was scrolled away");
    screen.keys(&["C-c"]).says("exit code 0");
}
