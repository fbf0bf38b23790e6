//! The documentation does what it says: every command and code block is run, or says what else runs it.

mod page;
mod scene;

use std::collections::BTreeSet;

use self::page::{Mark, blocks_of, pages_with_code, read};

/// Makes a test of each page.
macro_rules! pages {
    ($($name:ident $page:literal)*) => {
        const PAGES: &[&str] = &[$($page),*];

        $(#[test]
        fn $name() {
            scene::play($page);
        })*
    };
}

pages! {
    readme "README.md"
    alerts_and_dashboards "docs/guide/monitoring.md"
    administering_by_api "docs/guide/api.md"
    analytics "docs/guide/analytics.md"
    architecture "docs/architecture.md"
    clients "docs/guide/clients.md"
    environments "docs/guide/environments.md"
    limits "docs/guide/limits.md"
    migration "docs/guide/migration.md"
    notices "docs/guide/notices.md"
    operating "docs/guide/operate.md"
    packages "docs/guide/packages.md"
    performance "docs/reference/performance.md"
    postgres "docs/guide/postgres.md"
    prices "docs/guide/prices.md"
    quick_start "docs/guide/quickstart.md"
    redis "docs/guide/redis.md"
    reservations "docs/guide/reservations-and-events.md"
    runbook "docs/runbook.md"
    security "docs/security.md"
    setting_up "docs/guide/setup.md"
    sql_view "docs/reference/sql-view.md"
    torture "docs/guide/torture.md"
    troubleshooting "docs/guide/troubleshooting.md"
}

/// Pages whose blocks a test of their own runs.
const RUN_BY_OTHER_TESTS: &[(&str, &str)] = &[(
    "docs/guide/stripe.md",
    "promises::stripe::served::the_guides_commands_work",
)];

#[test]
fn no_page_with_code_is_left_out() {
    let listed: BTreeSet<&str> = PAGES
        .iter()
        .copied()
        .chain(RUN_BY_OTHER_TESTS.iter().map(|(page, _)| *page))
        .collect();
    for page in pages_with_code() {
        assert!(
            listed.contains(&*page),
            "{page} has code that no test runs: add it to the list in tests/it/docs/mod.rs"
        );
    }
}

#[test]
fn what_is_said_to_run_a_block_is_there() {
    let makefile = read("Makefile");
    let (mut run_by, mut not_run) = (0, 0);
    for page in pages_with_code() {
        for block in blocks_of(&page) {
            for mark in &block.marks {
                match mark {
                    Mark::RunBy(what) => {
                        run_by += 1;
                        let target = what.strip_prefix("make ");
                        let target = target.unwrap_or_else(|| panic!("{}: '{what}'", block.place));
                        let is_there = makefile
                            .lines()
                            .any(|line| line.starts_with(&format!("{target}:")));
                        assert!(is_there, "{}: there is no 'make {target}'", block.place);
                    }
                    Mark::NotRun(_) => not_run += 1,
                    Mark::File(_) | Mark::Before(_) | Mark::Answers(_) => {}
                }
            }
        }
    }
    assert!(
        run_by > 0 && not_run < 30,
        "{run_by} run elsewhere, {not_run} not run"
    );
}

/// Links from a page to a file of the repository, with the line's anchor if there is one.
fn links_of(text: &str) -> Vec<String> {
    let mut links = Vec::new();
    for part in text.split("](").skip(1) {
        let Some((link, _)) = part.split_once(')') else {
            continue;
        };
        let is_elsewhere = link.contains("://") || link.starts_with("mailto:");
        if !is_elsewhere {
            links.push(link.to_owned());
        }
    }
    links
}

#[test]
fn every_link_between_pages_leads_somewhere() {
    let mut pages = pages_with_code();
    pages.extend(
        [
            "docs/guide/page.md",
            "docs/reference/guarantees.md",
            "CHANGELOG.md",
        ]
        .map(str::to_owned),
    );
    for page in pages {
        let directory = page.rsplit_once('/').map_or("", |(directory, _)| directory);
        for link in links_of(&read(&page)) {
            let (path, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let target = if path.is_empty() {
                page.clone()
            } else {
                joined(directory, path)
            };
            let on_disk = crate::support::in_repository(&target);
            assert!(
                std::path::Path::new(&on_disk).exists(),
                "{page}: {link} leads nowhere"
            );
            if !anchor.is_empty() && target.ends_with(".md") {
                let headings = read(&target);
                let headings = headings.lines().filter(|line| line.starts_with('#'));
                let mut anchors = headings.map(|line| anchor_of(line.trim_start_matches('#')));
                assert!(
                    anchors.any(|it| it == anchor),
                    "{page}: {target} has no section #{anchor}"
                );
            }
        }
    }
}

/// `docs/guide` and `../runbook.md` are `docs/runbook.md`.
fn joined(directory: &str, path: &str) -> String {
    let mut parts: Vec<&str> = directory
        .split('/')
        .filter(|part| !part.is_empty())
        .collect();
    for part in path.split('/') {
        match part {
            ".." => drop(parts.pop()),
            "." | "" => {}
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// As the places that show Markdown make anchors of headings.
pub(crate) fn anchor_of(heading: &str) -> String {
    let kept = heading.trim().chars().filter_map(|it| match it {
        ' ' | '-' => Some('-'),
        it if it.is_alphanumeric() || it == '_' => Some(it),
        _ => None,
    });
    kept.flat_map(char::to_lowercase).collect()
}
