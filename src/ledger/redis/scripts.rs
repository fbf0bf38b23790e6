//! The Lua scripts, and how they are called.

use std::sync::LazyLock;

use redis::{Arg, Cmd};

/// One of the scripts in `lua/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Script {
    Decide,
    Count,
    Forget,
    Renew,
    Release,
    Install,
    Peek,
    Watch,
    Answer,
}

struct Source {
    text: &'static str,
    /// What `EVALSHA` calls it.
    hash: String,
}

static SOURCES: LazyLock<[Source; 9]> = LazyLock::new(|| {
    macro_rules! source {
        ($file:literal) => {{
            let text = concat!(include_str!("lua/common.lua"), include_str!($file));
            let hash = redis::Script::new(text).get_hash().to_owned();
            Source { text, hash }
        }};
    }
    [
        source!("lua/decide.lua"),
        source!("lua/count.lua"),
        source!("lua/forget.lua"),
        source!("lua/renew.lua"),
        source!("lua/release.lua"),
        source!("lua/install.lua"),
        source!("lua/peek.lua"),
        source!("lua/watch.lua"),
        source!("lua/answer.lua"),
    ]
});

/// What every script gets beside its own question.
#[derive(Clone, Debug)]
pub(super) struct Head<'a> {
    /// Names the bucket's epoch, and with its hash tag the place in a cluster.
    pub(super) marker: &'a str,
    pub(super) epoch: &'a str,
    pub(super) root: &'a str,
    /// A name that nobody had, should something begin.
    pub(super) fresh: &'a str,
    /// µs; -1: by the server's clock.
    pub(super) now: i64,
    /// µs; -1: whenever it comes.
    pub(super) not_after: i64,
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

    pub(super) fn call(self, head: &Head<'_>, ask: &[u8]) -> Call {
        let mut by_name = redis::cmd("EVALSHA");
        by_name
            .arg(&self.source().hash)
            .arg(1)
            .arg(head.marker)
            .arg(head.epoch)
            .arg(head.root)
            .arg(head.fresh)
            .arg(head.now)
            .arg(head.not_after)
            .arg(ask);
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
        load.arg("LOAD").arg(source.text);
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
        by_text.arg(self.script.source().text);
        for argument in self.by_name.args_iter().skip(2) {
            if let Arg::Simple(bytes) = argument {
                by_text.arg(bytes);
            }
        }
        by_text
    }
}
