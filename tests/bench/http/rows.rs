//! The rows of design.md §6 that are measured over HTTP.

use std::{collections::BTreeMap, time::Duration};

use super::{
    Options,
    gate::{self, Gate, Kind},
    load::{self, Answered, Call, Streamed},
    process::Running,
    report::{Goal, Report, median, note, quantile},
    stage::{PROMPT, Round, Stage, rested, round},
    upstream::{FRAMES, PAUSE},
};

const CLIENTS: usize = 64;
const STREAMS: usize = 32;
/// Streams open at once where their memory is measured.
const MANY_STREAMS: usize = 500;
const IDLE_TIME: Duration = Duration::from_secs(20);

/// What a row needs: the processes, the options, the disk's time, and where figures go.
pub(crate) struct Bench {
    pub(crate) stage: Stage,
    pub(crate) options: Options,
    pub(crate) directory: std::path::PathBuf,
    pub(crate) fdatasync_ms: f64,
    pub(crate) report: Report,
}

/// Medians of several rounds.
struct Medians {
    processor_us: f64,
    per_second: f64,
}

impl Bench {
    /// Rounds of a closed loop, the targets taking turns, so that what disturbs the machine disturbs all.
    async fn rounds(
        &self,
        targets: &[(&'static str, &Running, Call)],
    ) -> anyhow::Result<BTreeMap<&'static str, Medians>> {
        let mut seen: BTreeMap<&'static str, Vec<Round>> = BTreeMap::new();
        for _ in 0..self.options.rounds {
            for (name, running, call) in targets {
                let round = round(running, call, CLIENTS, self.options.seconds).await?;
                seen.entry(name).or_default().push(round);
            }
        }
        let mut medians = BTreeMap::new();
        for (name, rounds) in seen {
            let of =
                |figure: fn(&Round) -> f64| median(&rounds.iter().map(figure).collect::<Vec<_>>());
            let processor_us = of(|round| round.processor_us);
            let per_second = of(|round| round.per_second);
            note(&format!(
                "  {name}: {processor_us:.1} µs of processor time a request, {per_second:.0}/s"
            ))?;
            medians.insert(
                name,
                Medians {
                    processor_us,
                    per_second,
                },
            );
        }
        Ok(medians)
    }

    /// Rows 1, 2 and 3.
    pub(crate) async fn whole_answers(&mut self) -> anyhow::Result<()> {
        let stage = &self.stage;
        let seen = self
            .rounds(&[
                ("nginx", &stage.nginx.running, self.nginx(PROMPT)),
                ("bare", &stage.bare.running, stage.bare.chat(PROMPT)),
                (
                    "process",
                    &stage.process.running,
                    stage.process.chat(PROMPT),
                ),
                ("full", &stage.full.running, stage.full.chat(PROMPT)),
            ])
            .await?;
        let cost = |name: &str| seen[name].processor_us / seen["nginx"].processor_us;
        let rate = |one: &str, other: &str| seen[one].per_second / seen[other].per_second;
        let (full, bare, process) = (cost("full"), cost("bare"), cost("process"));
        let (to_nginx, to_bare) = (rate("full", "nginx"), rate("full", "bare"));
        let report = &mut self.report;
        let mut cost = |row, what: &str, figure, most| {
            let what = format!("processor time a request, {what}, to nginx's");
            report.figure(row, &what, figure, " ×", Goal::AtMost(most))
        };
        cost("1", "guarded and durable", full, 2.5)?;
        cost("2", "bare", bare, 1.5)?;
        cost("2", "guarded, process durability", process, 1.8)?;
        let mut rate = |what: &str, figure, least| {
            let what = format!("requests/s, guarded and durable, to {what}");
            self.report
                .figure("3", &what, figure, " ×", Goal::AtLeast(least))
        };
        rate("nginx's", to_nginx, 0.45)?;
        rate("the bare proxy's", to_bare, 0.5)?;
        Ok(())
    }

    /// Row 5.
    pub(crate) async fn latency(&mut self) -> anyhow::Result<()> {
        let direct = Call::chat(self.stage.upstream.address, "none", PROMPT);
        let (nginx, full) = (self.nginx(PROMPT), self.stage.full.chat(PROMPT));
        let slow = self.options.seconds * 2;
        let mut took: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        for _ in 0..self.options.rounds {
            for (name, call, rate, time) in [
                ("direct", &direct, 50, slow),
                ("gently", &full, 50, slow),
                ("nginx", &nginx, 2_000, self.options.seconds),
                ("full", &full, 2_000, self.options.seconds),
            ] {
                let Answered { took_ms, .. } = load::open(call, rate, time).await?;
                took.entry(name).or_default().extend(took_ms);
                rested(&self.stage.full.running).await?;
            }
        }
        let p50 = |name: &str| median(&took[name]);
        let p99 = |name: &str| quantile(&took[name], 0.99);
        for name in ["direct", "gently", "nginx", "full"] {
            note(&format!(
                "  {name}: p50 {:.3} ms, p99 {:.3} ms",
                p50(name),
                p99(name)
            ))?;
        }
        let most = 3.0 * self.fdatasync_ms + 0.1;
        let figures = [
            (
                "50/s: p50 over a direct call",
                p50("gently") - p50("direct"),
                0.5,
            ),
            (
                "2,000/s: p50 over nginx (3 × fdatasync + 0.1 ms)",
                p50("full") - p50("nginx"),
                most,
            ),
            ("2,000/s: p99 over nginx", p99("full") - p99("nginx"), 5.0),
        ];
        for (what, figure, most) in figures {
            let what = format!("added latency at {what}");
            self.report
                .figure("5", &what, figure, " ms", Goal::AtMost(most))?;
        }
        Ok(())
    }

    /// Row 6.
    pub(crate) async fn streams(&mut self) -> anyhow::Result<()> {
        let (mut nginx, mut full) = (Streams::default(), Streams::default());
        let prompt = stream_prompt(Duration::from_millis(2));
        for _ in 0..self.options.rounds {
            let stage = &self.stage;
            let calls = [
                (&mut nginx, &stage.nginx.running, self.nginx(&prompt)),
                (&mut full, &stage.full.running, stage.full.chat(&prompt)),
            ];
            for (seen, running, call) in calls {
                let before = running.processor_time()?;
                let streamed = load::streams(&call, STREAMS, self.options.seconds).await?;
                seen.add(&streamed, rested(running).await? - before)?;
            }
        }
        note(&format!("  nginx: {}", nginx.told()))?;
        note(&format!("  full: {}", full.told()))?;
        let first = |part| quantile(&full.first_ms, part) - quantile(&nginx.first_ms, part);
        let late = median(&full.end_late_ms) - median(&nginx.end_late_ms);
        let extra = full
            .frames
            .iter()
            .map(|&frames| frames.abs_diff(FRAMES + 2))
            .max();
        let figures = [
            (
                "processor time a stream, 32 open, to nginx's",
                median(&full.cost_us) / median(&nginx.cost_us),
                " ×",
                1.6,
            ),
            ("first frame p50 over nginx", first(0.5), " ms", 0.1),
            ("first frame p99 over nginx", first(0.99), " ms", 1.0),
            (
                "first frame, the slowest over nginx's fastest",
                quantile(&full.first_ms, 1.0) - quantile(&nginx.first_ms, 0.0),
                " ms",
                20.0,
            ),
            (
                "last frame p50 over nginx (3 × fdatasync + 1 ms)",
                late,
                " ms",
                3.0 * self.fdatasync_ms + 1.0,
            ),
            (
                "frames more or less than were sent, at most",
                f64::from(extra.unwrap_or(u32::MAX)),
                "",
                0.0,
            ),
        ];
        for (what, figure, unit, most) in figures {
            self.report
                .figure("6", what, figure, unit, Goal::AtMost(most))?;
        }
        self.stream_memory().await
    }

    /// A fresh server, so that memory left over from other rounds does not hide what a stream takes.
    async fn stream_memory(&mut self) -> anyhow::Result<()> {
        let gate = Gate::start(Kind::Full, &self.directory, self.stage.upstream.address)?;
        let call = gate.chat(&stream_prompt(Duration::from_millis(30)));
        // What is read in once, such as the tokenizer, is no stream's.
        let first = gate.chat(&stream_prompt(Duration::from_millis(1)));
        load::streams(&first, 8, Duration::from_millis(500)).await?;
        let before = gate.running.resident_kib()?;
        let streams = load::streams(&call, MANY_STREAMS, Duration::from_millis(1));
        let look = async {
            tokio::time::sleep(Duration::from_millis(2_000)).await;
            gate.running.resident_kib()
        };
        let (streamed, during) = tokio::join!(streams, look);
        streamed?;
        let more = during?.saturating_sub(before);
        let each = load::count(usize::try_from(more)?) / load::count(MANY_STREAMS);
        let what = "memory a stream, 500 open";
        Ok(self
            .report
            .figure("6", what, each, " KB", Goal::AtMost(64.0))?)
    }

    /// Row 7.
    pub(crate) async fn large_prompts(&mut self) -> anyhow::Result<()> {
        let text = "a prompt that is long, as prompts are ".repeat(64 * 1024 / 38);
        let body = format!(
            r#"{{"model":"gpt-4o","messages":[{{"role":"user","content":"{text}"}}],"max_tokens":200}}"#
        );
        let stage = &self.stage;
        let seen = self
            .rounds(&[
                ("nginx", &stage.nginx.running, self.nginx(&body)),
                ("process", &stage.process.running, stage.process.chat(&body)),
                ("full", &stage.full.running, stage.full.chat(&body)),
            ])
            .await?;
        for (name, what, most) in [
            ("process", "not waiting for the disk", 1.6),
            ("full", "durable", 3.0),
        ] {
            let figure = seen[name].processor_us / seen["nginx"].processor_us;
            let what = format!("processor time of a prompt of 64 KB, {what}, to nginx's");
            self.report
                .figure("7", &what, figure, " ×", Goal::AtMost(most))?;
        }
        Ok(())
    }

    /// Row 11.
    pub(crate) async fn refusals(&mut self) -> anyhow::Result<()> {
        let full = &self.stage.full;
        let seen = self
            .rounds(&[
                ("nginx", &self.stage.nginx.running, self.nginx(PROMPT)),
                (
                    "429",
                    &full.running,
                    Call::chat(full.address, &full.spent_key, PROMPT).expect(429),
                ),
                (
                    "401",
                    &full.running,
                    Call::chat(full.address, "tg_nobodys", PROMPT).expect(401),
                ),
            ])
            .await?;
        for refusal in ["429", "401"] {
            let figure = seen[refusal].processor_us / seen["nginx"].processor_us;
            let what = format!("processor time of a {refusal}, to what nginx pays to proxy");
            self.report
                .figure("11", &what, figure, " ×", Goal::AtMost(0.8))?;
            let what = format!("{refusal}s a second");
            self.report.figure(
                "11",
                &what,
                seen[refusal].per_second,
                "/s",
                Goal::AtLeast(100_000.0),
            )?;
        }
        Ok(())
    }

    /// Row 14.
    pub(crate) async fn idle(&mut self) -> anyhow::Result<()> {
        let gate = Gate::start(Kind::Full, &self.directory, self.stage.upstream.address)?;
        let (gate, first_answer) = gate.restart()?;
        tokio::time::sleep(Duration::from_secs(2)).await;
        let before = gate.running.processor_time()?;
        tokio::time::sleep(IDLE_TIME).await;
        let used = gate.running.processor_time()? - before;
        let kib = gate.running.resident_kib()?;
        let megabytes = f64::from(u32::try_from(kib)?) * 1_024.0 / 1e6;
        let percent = used.as_secs_f64() / IDLE_TIME.as_secs_f64() * 100.0;
        let figures = [
            ("resident when idle", megabytes, " MB", 30.0),
            ("processor time when idle, of one core", percent, " %", 0.1),
            (
                "first chat completion after start",
                first_answer.as_secs_f64(),
                " s",
                0.15,
            ),
            ("the binary", gate::binary_mb()?, " MB", 40.0),
        ];
        for (what, figure, unit, most) in figures {
            self.report
                .figure("14", what, figure, unit, Goal::AtMost(most))?;
        }
        Ok(())
    }

    fn nginx(&self, body: &str) -> Call {
        Call::chat(self.stage.nginx.address, "none", body)
    }
}

/// What the streams through one target saw.
#[derive(Default)]
struct Streams {
    cost_us: Vec<f64>,
    first_ms: Vec<f64>,
    end_late_ms: Vec<f64>,
    frames: Vec<u32>,
}

impl Streams {
    fn add(&mut self, streamed: &Streamed, used: Duration) -> anyhow::Result<()> {
        let streams = load::count(usize::try_from(streamed.streams)?);
        self.cost_us.push(used.as_secs_f64() * 1e6 / streams);
        self.first_ms.extend(&streamed.first_ms);
        self.end_late_ms.extend(&streamed.end_late_ms);
        self.frames.extend(&streamed.frames);
        Ok(())
    }

    fn told(&self) -> String {
        format!(
            "{:.0} µs of processor time a stream; first frame p50 {:.3} ms, p99 {:.3} ms, slowest {:.3} ms; end mark p50 {:.3} ms, p99 {:.3} ms late",
            median(&self.cost_us),
            median(&self.first_ms),
            quantile(&self.first_ms, 0.99),
            quantile(&self.first_ms, 1.0),
            median(&self.end_late_ms),
            quantile(&self.end_late_ms, 0.99),
        )
    }
}

fn stream_prompt(pause: Duration) -> String {
    format!(
        r#"{{"model":"gpt-4o","stream":true,"stream_options":{{"include_usage":true}},"metadata":{{{PAUSE}{}}},"messages":[{{"role":"user","content":"What does a tollgate do?"}}],"max_tokens":200}}"#,
        pause.as_micros()
    )
}
