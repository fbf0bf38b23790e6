//! The Lua scripts, and how they are called.

use std::sync::LazyLock;

use redis::{Arg, Cmd};

use super::wire::{self, Numbers, Question};

/// One of the scripts in `lua/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Script {
    Decide,
    Count,
    Forget,
    Renew,
    Install,
    Peek,
    Watch,
    Answer,
}

struct Source {
    text: String,
    /// What `EVALSHA` calls it.
    hash: String,
}

static SOURCES: LazyLock<[Source; 8]> = LazyLock::new(|| {
    const START: &str = include_str!("lua/start.lua");
    const COMMON: &str = include_str!("lua/common.lua");
    /// Where a script that every request runs has what is rare in it.
    const PLACE: &str = "--- common ---";
    let named = |text: String| {
        let hash = redis::Script::new(&text).get_hash().to_owned();
        Source { text, hash }
    };
    let alone = |text: &str| named(text.to_owned());
    let begun = |text: &str| named(format!("{START}{text}"));
    let with_common = |text: &str| named(format!("{START}{COMMON}{text}"));
    let with_common_inside = |text: &str| begun(&text.replacen(PLACE, COMMON, 1));
    [
        with_common_inside(include_str!("lua/decide.lua")),
        with_common_inside(include_str!("lua/count.lua")),
        with_common(include_str!("lua/forget.lua")),
        with_common(include_str!("lua/renew.lua")),
        with_common(include_str!("lua/install.lua")),
        with_common(include_str!("lua/peek.lua")),
        alone(include_str!("lua/watch.lua")),
        begun(include_str!("lua/answer.lua")),
    ]
});

/// What every script gets beside its own question.
#[derive(Clone, Debug)]
pub(super) struct Head<'a> {
    /// Names the bucket's epoch, and with its hash tag the place in a cluster.
    pub(super) marker: &'a str,
    pub(super) epoch: &'a str,
    pub(super) root: &'a str,
    /// A number that nobody had, should something begin.
    pub(super) fresh: i64,
    /// µs; -1: by the server's clock.
    pub(super) now: i64,
    /// µs; -1: whenever it comes.
    pub(super) not_after: i64,
    /// µs
    pub(super) lease: i64,
}

/// A call, by the script's name; where the server does not know it, by its text.
#[derive(Clone, Debug)]
pub(super) struct Call {
    script: Script,
    by_name: Cmd,
}

impl Script {
    fn source(self) -> &'static Source {
        &SOURCES[self as usize]
    }

    pub(super) fn call(self, head: &Head<'_>, question: &Question) -> Call {
        let mut numbers = Numbers::default();
        numbers
            .push(wire::number_of(head.epoch))
            .push(head.fresh)
            .push(head.now)
            .push(head.not_after)
            .push(question.needs_live.into())
            .push(head.lease)
            .append(&question.numbers);
        let mut by_name = redis::cmd("EVALSHA");
        by_name
            .arg(&self.source().hash)
            .arg(1)
            .arg(head.marker)
            .arg(head.epoch)
            .arg(head.root)
            .arg(numbers.bytes())
            .arg(&question.beside);
        Call {
            script: self,
            by_name,
        }
    }
}

/// Commands that make all scripts known to a server. Calls that wait together are carried out in their order only then.
pub(super) fn load_all() -> impl Iterator<Item = Cmd> {
    SOURCES.iter().map(|source| {
        let mut load = redis::cmd("SCRIPT");
        load.arg("LOAD").arg(&source.text);
        load
    })
}

impl Call {
    pub(super) fn by_name(&self) -> &Cmd {
        &self.by_name
    }

    /// The same with the script's text, which the server keeps from then on.
    pub(super) fn by_text(&self) -> Cmd {
        let mut by_text = redis::cmd("EVAL");
        by_text.arg(&self.script.source().text);
        for argument in self.by_name.args_iter().skip(2) {
            if let Arg::Simple(bytes) = argument {
                by_text.arg(bytes);
            }
        }
        by_text
    }
}
