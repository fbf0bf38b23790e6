//! A page of the documentation, as the code blocks in it.
//!
//! What a comment just before a block says of it:
//!
//! - `<!-- not run: why -->`: it can't run here, and why
//! - `<!-- run by: make TARGET -->`: another check runs it as it stands
//! - `<!-- file: NAME -->`: what it shows is the file NAME, which blocks after it use
//! - `<!-- before: COMMANDS -->`: what must have been done; run as well, in a script of its own lines
//! - `<!-- answers: 429 -->`: statuses of 400 and above that its requests get

use std::{fs, path::Path};

use crate::support::in_repository;

/// A fenced block.
#[derive(Clone, Debug)]
pub(super) struct Block {
    /// As `docs/guide/limits.md:12`, for messages.
    pub(super) place: String,
    pub(super) language: String,
    pub(super) marks: Vec<Mark>,
    pub(super) text: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Mark {
    NotRun(String),
    RunBy(String),
    File(String),
    Before(String),
    Answers(Vec<u16>),
}

impl Block {
    /// What runs it, or why it is not run; `None`: the scene has to.
    pub(super) fn is_run_elsewhere(&self) -> bool {
        self.marks
            .iter()
            .any(|mark| matches!(mark, Mark::NotRun(_) | Mark::RunBy(_)))
    }

    pub(super) fn file(&self) -> Option<&str> {
        self.marks.iter().find_map(|mark| match mark {
            Mark::File(name) => Some(name.as_str()),
            _ => None,
        })
    }
}

pub(super) fn read(page: &str) -> String {
    let path = in_repository(page);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The blocks of a page, in order.
pub(super) fn blocks_of(page: &str) -> Vec<Block> {
    let text = read(page);
    let mut lines = text.lines().enumerate();
    let (mut blocks, mut marks) = (Vec::new(), Vec::new());
    while let Some((number, line)) = lines.next() {
        let place = format!("{page}:{}", number + 1);
        let trimmed = line.trim_start();
        if let Some(comment) = trimmed.strip_prefix("<!--") {
            let mut comment = comment.to_owned();
            while !comment.contains("-->") {
                let (_, more) = lines
                    .next()
                    .unwrap_or_else(|| panic!("{place}: no end of the comment"));
                comment.push('\n');
                comment.push_str(more);
            }
            let said = comment.split("-->").next().unwrap_or_default().trim();
            marks.extend(mark_of(said, &place));
        } else if let Some(language) = trimmed.strip_prefix("```") {
            let mut text = String::new();
            for (_, line) in lines.by_ref() {
                if line.trim_start().starts_with("```") {
                    break;
                }
                text.push_str(line);
                text.push('\n');
            }
            blocks.push(Block {
                place,
                language: language.trim().to_owned(),
                marks: std::mem::take(&mut marks),
                text,
            });
        } else if !trimmed.is_empty() {
            assert!(marks.is_empty(), "{place}: a mark that no block follows");
        }
    }
    blocks
}

/// `None` for a comment that is no mark.
fn mark_of(said: &str, place: &str) -> Option<Mark> {
    let (kind, rest) = said.split_once(':')?;
    let rest = rest.trim();
    let mark = match kind {
        "not run" => Mark::NotRun(rest.to_owned()),
        "run by" => Mark::RunBy(rest.to_owned()),
        "file" => Mark::File(rest.to_owned()),
        "before" => Mark::Before(rest.to_owned()),
        "answers" => {
            let statuses = rest.split_whitespace().map(|status| status.parse());
            Mark::Answers(statuses.collect::<Result<_, _>>().expect(place))
        }
        _ => return None,
    };
    assert!(!rest.is_empty(), "{place}: '{kind}' says nothing");
    Some(mark)
}

/// Every page that has code blocks.
pub(super) fn pages_with_code() -> Vec<String> {
    let mut pages = vec!["README.md".to_owned()];
    let mut directories = vec!["docs".to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(in_repository(&directory)).unwrap() {
            let entry = entry.unwrap();
            let path = format!("{directory}/{}", entry.file_name().into_string().unwrap());
            if entry.file_type().unwrap().is_dir() {
                directories.push(path);
            } else if Path::new(&path).extension().is_some_and(|it| it == "md") {
                pages.push(path);
            }
        }
    }
    pages.retain(|page| !blocks_of(page).is_empty());
    pages.sort();
    pages
}
