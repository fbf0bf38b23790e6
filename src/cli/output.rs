//! What commands print: a table for people or JSON for programs. The only file that writes to stdout.

use std::io::{self, IsTerminal as _, Write as _};

use comfy_table::{Attribute, Cell, CellAlignment, Color, ContentArrangement, Table, presets};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// `--output`; CSV is the first table, as RFC 4180.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OutputMode {
    Table,
    Json,
    Csv,
}

impl OutputMode {
    /// What is printed unless asked for: tables are for people.
    #[must_use]
    pub fn of_stdout() -> Self {
        if io::stdout().is_terminal() {
            Self::Table
        } else {
            Self::Json
        }
    }
}

/// The result of a command, in both forms; travels from a server to the command that asked it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Output {
    json: Value,
    parts: Vec<Part>,
    /// Why the command ends with exit code 1 although it has something to show.
    #[serde(default)]
    failure: Option<String>,
    /// Lines for stderr, in either form.
    #[serde(default)]
    warnings: Vec<String>,
    /// Printed unless asked for else; `None`: as suits stdout.
    #[serde(default)]
    usual: Option<OutputMode>,
}

/// A part of what is shown to people.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Part {
    Table {
        columns: Vec<String>,
        rows: Vec<Vec<String>>,
        #[serde(default)]
        marks: Marks,
    },
    Facts(Vec<(String, String)>),
    Note(String),
    Lines(Vec<String>),
}

/// What makes a table quicker to read.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Marks {
    /// Columns of percentages that get a bar.
    #[serde(default)]
    pub bars: Vec<String>,
    /// Columns that are coloured where colours are allowed.
    #[serde(default)]
    pub coloured: Vec<String>,
    /// The colours, one a row.
    #[serde(default)]
    pub tones: Vec<Tone>,
}

/// How a row is to be taken; never the only sign of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tone {
    Good,
    Caution,
    Bad,
}

impl Tone {
    const fn colour(self) -> Color {
        match self {
            Self::Good => Color::Green,
            Self::Caution => Color::Yellow,
            Self::Bad => Color::Red,
        }
    }
}

/// Shown where a value is not there.
pub const NOTHING: &str = "–";

/// The value as text, or a dash.
pub fn or_dash<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| NOTHING.to_owned(), |value| value.to_string())
}

impl Output {
    /// Many things of one kind: `{"items":[…]}`, and a table with a row each.
    ///
    /// # Panics
    /// If an item can't be JSON; items are plain data.
    #[must_use]
    pub fn list<T: Serialize>(
        items: &[T],
        columns: &[&str],
        row: impl Fn(&T) -> Vec<String>,
    ) -> Self {
        let json = serde_json::json!({ "items": to_json(&items) });
        Self::of_json(json).table(columns, items.iter().map(row).collect())
    }

    /// One thing, with what is to be known of it line by line.
    ///
    /// # Panics
    /// If it can't be JSON; objects are plain data.
    #[must_use]
    pub fn object<T: Serialize>(object: &T, facts: Vec<(&str, String)>) -> Self {
        let mut output = Self::of_json(to_json(object));
        let facts = facts
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value));
        output.parts.push(Part::Facts(facts.collect()));
        output
    }

    /// JSON made elsewhere; [`table`](Self::table) and [`note`](Self::note) add what people see of it.
    #[must_use]
    pub fn of_json(json: Value) -> Self {
        Self {
            json,
            parts: vec![],
            failure: None,
            warnings: vec![],
            usual: None,
        }
    }

    /// Adds a table to what people see.
    #[must_use]
    pub fn table(self, columns: &[&str], rows: Vec<Vec<String>>) -> Self {
        self.marked_table(columns, rows, Marks::default())
    }

    /// Adds a table with bars and colours.
    #[must_use]
    pub fn marked_table(mut self, columns: &[&str], rows: Vec<Vec<String>>, marks: Marks) -> Self {
        let columns = columns.iter().map(|column| (*column).to_owned()).collect();
        self.parts.push(Part::Table {
            columns,
            rows,
            marks,
        });
        self
    }

    /// Adds a line to what people see.
    #[must_use]
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.parts.push(Part::Note(note.into()));
        self
    }

    /// Ends the command with exit code 1 and this line on stderr, once the rest is printed.
    #[must_use]
    pub fn failing(mut self, why: impl Into<String>) -> Self {
        self.failure = Some(why.into());
        self
    }

    #[must_use]
    pub fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    /// Adds lines that scripts read as people do: they are printed to a pipe too, unless JSON is asked for.
    #[must_use]
    pub fn lines(mut self, lines: Vec<String>) -> Self {
        self.parts.push(Part::Lines(lines));
        self.usual = Some(OutputMode::Table);
        self
    }

    /// Adds a member to an object's JSON, and lines for people.
    #[must_use]
    pub fn with(mut self, name: &str, value: Value, lines: Vec<String>) -> Self {
        self.json[name] = value;
        self.lines(lines)
    }

    /// The lines of [`lines`](Self::lines).
    #[must_use]
    pub fn text_lines(&self) -> Vec<String> {
        let lines = self.parts.iter().filter_map(|part| match part {
            Part::Lines(lines) => Some(lines.clone()),
            Part::Table { .. } | Part::Facts(_) | Part::Note(_) => None,
        });
        lines.flatten().collect()
    }

    /// Adds a warning, for stderr in either form.
    #[must_use]
    pub fn warn(mut self, warning: &str) -> Self {
        self.warnings.push(warning.to_owned());
        self
    }

    #[must_use]
    pub fn json(&self) -> &Value {
        &self.json
    }

    /// The text to print, with its last newline. `look` matters to tables only.
    #[must_use]
    pub fn render(&self, mode: OutputMode, look: Look) -> String {
        match mode {
            OutputMode::Json => format!("{:#}\n", self.json),
            OutputMode::Csv => self.csv(),
            OutputMode::Table => {
                let parts: Vec<_> = self.parts.iter().map(|part| part.render(look)).collect();
                parts.join("\n")
            }
        }
    }

    /// The first table, or the facts, or else the lines, as RFC 4180; a cell that a spreadsheet would run as a formula gets a leading `'`.
    fn csv(&self) -> String {
        let table = self.parts.iter().find_map(|part| match part {
            Part::Table { columns, rows, .. } => Some((columns.clone(), rows.clone())),
            Part::Facts(facts) => {
                let row = facts.iter().map(|(_, value)| value.clone()).collect();
                Some((
                    facts.iter().map(|(name, _)| name.clone()).collect(),
                    vec![row],
                ))
            }
            Part::Lines(_) | Part::Note(_) => None,
        });
        let line = |cells: &Vec<String>| {
            let cells: Vec<String> = cells.iter().map(|cell| csv_cell(cell)).collect();
            format!("{}\r\n", cells.join(","))
        };
        match table {
            Some((columns, rows)) => std::iter::once(&columns).chain(&rows).map(line).collect(),
            None => self
                .text_lines()
                .into_iter()
                .map(|text| line(&vec![text]))
                .collect(),
        }
    }

    /// Prints it as asked, or as suits stdout.
    ///
    /// # Errors
    /// Of stdout.
    pub fn print(&self, mode: Option<OutputMode>) -> io::Result<()> {
        for warning in &self.warnings {
            eprintln!("warning: {}", visible(warning));
        }
        let mode = mode.or(self.usual).unwrap_or_else(OutputMode::of_stdout);
        print(&self.render(mode, Look::of_stdout()))
    }

    /// As [`print`](Self::print), on a terminal over what was printed before: line by line, so that nothing flickers.
    ///
    /// # Errors
    /// Of stdout.
    pub fn print_in_place(&self, mode: Option<OutputMode>) -> io::Result<()> {
        if !io::stdout().is_terminal() {
            return self.print(mode);
        }
        let mode = mode.or(self.usual).unwrap_or(OutputMode::Table);
        print(&in_place(&self.render(mode, Look::of_stdout())))
    }
}

/// From the screen's first line on, clearing the rest of each line and what is left below (ECMA-48: CUP, EL, ED).
fn in_place(text: &str) -> String {
    let lines = text.lines().map(|line| format!("{line}\u{1b}[K\n"));
    format!("\u{1b}[H{}\u{1b}[J", lines.collect::<String>())
}

fn csv_cell(cell: &str) -> String {
    if cell == NOTHING {
        return String::new();
    }
    let is_number = cell.parse::<f64>().is_ok();
    let is_formula = cell.starts_with(['=', '+', '-', '@', '\t', '\r']) && !is_number;
    let cell = if is_formula {
        format!("'{cell}")
    } else {
        cell.to_owned()
    };
    if cell.contains([',', '"', '\r', '\n']) {
        format!("\"{}\"", cell.replace('"', "\"\""))
    } else {
        cell
    }
}

fn to_json<T: Serialize>(value: &T) -> Value {
    serde_json::to_value(value).expect("objects of the command line are plain data")
}

/// Whether tables may be coloured and must fit a screen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// As wide as it gets, without any escape code.
    Plain,
    /// Fits the terminal.
    Fitted,
    /// Fits the terminal, with bold headings, and colours where they help.
    Coloured,
}

impl Look {
    fn of_stdout() -> Self {
        // https://no-color.org: present and not empty, whatever its value.
        let is_plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        match (io::stdout().is_terminal(), is_plain) {
            (false, _) => Self::Plain,
            (true, true) => Self::Fitted,
            (true, false) => Self::Coloured,
        }
    }
}

impl Part {
    fn render(&self, look: Look) -> String {
        match self {
            Self::Note(note) => format!("{note}\n"),
            Self::Lines(lines) => {
                let lines = lines.iter().map(|line| format!("{}\n", visible(line)));
                lines.collect()
            }
            Self::Facts(facts) => {
                let mut table = bare(look);
                for (name, value) in facts {
                    table.add_row([heading(name, look), Cell::new(visible(value))]);
                }
                trimmed(table)
            }
            Self::Table { columns, rows, .. } if rows.is_empty() => {
                format!("{}\nnone\n", columns.join("  "))
            }
            Self::Table {
                columns,
                rows,
                marks,
            } => {
                let mut table = bare(look);
                table.set_header(columns.iter().map(|column| heading(column, look)));
                for (index, row) in rows.iter().enumerate() {
                    let tone = marks.tones.get(index).filter(|_| look == Look::Coloured);
                    let cells = columns.iter().zip(row).map(|(column, text)| {
                        let cell = Cell::new(marks.shown(column, text));
                        match tone.filter(|_| marks.coloured.contains(column)) {
                            Some(tone) => cell.fg(tone.colour()),
                            None => cell,
                        }
                    });
                    table.add_row(cells);
                }
                align_numbers(&mut table, rows);
                trimmed(table)
            }
        }
    }
}

impl Marks {
    fn shown(&self, column: &String, cell: &str) -> String {
        let percent = cell.parse().ok().filter(|_| self.bars.contains(column));
        percent.map_or_else(|| visible(cell), bar)
    }
}

/// `██████░░░░ 62.00 %`: a block begins with each tenth that is passed.
fn bar(percent: f64) -> String {
    let blocks = (0..10).map(|tenth| {
        if percent > f64::from(tenth * 10) {
            '█'
        } else {
            '░'
        }
    });
    format!("{} {percent:6.2} %", blocks.collect::<String>())
}

/// A terminal that says it is narrower does not know how wide it is: many say 0.
const NARROWEST: u16 = 20;

fn bare(look: Look) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    match look {
        Look::Plain => table
            .force_no_tty()
            .set_content_arrangement(ContentArrangement::Disabled),
        Look::Fitted => table.set_content_arrangement(ContentArrangement::Dynamic),
        Look::Coloured => table
            .enforce_styling()
            .set_content_arrangement(ContentArrangement::Dynamic),
    };
    if table.width().is_some_and(|width| width < NARROWEST) {
        table.set_content_arrangement(ContentArrangement::Disabled);
    }
    table
}

fn heading(text: &str, look: Look) -> Cell {
    let cell = Cell::new(text);
    if look == Look::Coloured {
        cell.add_attribute(Attribute::Bold)
    } else {
        cell
    }
}

/// Names may hold anything that is no control character, but reasons come from elsewhere too: nothing that is shown
/// may move a terminal's cursor.
fn visible(text: &str) -> String {
    text.chars()
        .map(|c| {
            if c.is_control() {
                char::REPLACEMENT_CHARACTER
            } else {
                c
            }
        })
        .collect()
}

fn align_numbers(table: &mut Table, rows: &[Vec<String>]) {
    let is_number = |cell: &String| cell == NOTHING || cell.parse::<i64>().is_ok();
    for (index, column) in table.column_iter_mut().enumerate() {
        if rows.iter().all(|row| row.get(index).is_none_or(is_number)) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
}

/// Columns are two spaces apart, and nothing stands before the first: trimmed off afterwards, a space that is coloured
/// would stay.
fn trimmed(mut table: Table) -> String {
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let lines = table.lines();
    lines.map(|line| format!("{}\n", line.trim_end())).collect()
}

/// Writes text to stdout. A reader that has gone (`| head`) is no failure.
///
/// # Errors
/// Of stdout, such as a full disk.
pub fn print(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plans() -> Output {
        let items = [("starter", 200), ("enterprise", 7)];
        let row =
            |item: &(&str, i32)| vec![item.0.to_owned(), item.1.to_string(), NOTHING.to_owned()];
        Output::list(&items, &["plan", "messages", "models"], row)
    }

    #[test]
    fn a_list_is_items_for_programs_and_a_table_for_people() {
        assert_eq!(plans().json()["items"][0][0], "starter");
        assert_eq!(
            plans().render(OutputMode::Table, Look::Plain),
            "plan        messages  models\nstarter          200       –\nenterprise         7       –\n"
        );
    }

    #[test]
    fn json_is_whole_and_ends_with_a_newline() {
        let text = plans()
            .note("only for people")
            .render(OutputMode::Json, Look::Coloured);
        assert!(text.ends_with("}\n") && !text.contains("people"), "{text}");
        assert_eq!(
            serde_json::from_str::<Value>(&text).unwrap(),
            *plans().json()
        );
    }

    #[test]
    fn an_empty_list_says_so() {
        let empty = Output::list::<()>(&[], &["plan", "name"], |()| vec![]);
        assert_eq!(
            empty.render(OutputMode::Table, Look::Plain),
            "plan  name\nnone\n"
        );
        assert_eq!(empty.json(), &serde_json::json!({"items": []}));
    }

    #[test]
    fn facts_and_notes_stand_line_by_line() {
        let output = Output::object(
            &1,
            vec![("key", "tg_x".to_owned()), ("name", "a".to_owned())],
        );
        let text = output
            .note("Shown once.")
            .render(OutputMode::Table, Look::Plain);
        assert_eq!(text, "key   tg_x\nname  a\n\nShown once.\n");
    }

    #[test]
    fn only_a_terminal_that_allows_it_is_sent_escape_codes() {
        for look in [Look::Plain, Look::Fitted] {
            assert!(
                !plans().render(OutputMode::Table, look).contains('\u{1b}'),
                "{look:?}"
            );
        }
        let hostile = Output::object(&1, vec![("name", "a\u{1b}[2Jb\n".to_owned())]);
        assert!(
            !hostile
                .render(OutputMode::Table, Look::Plain)
                .contains('\u{1b}')
        );
    }

    fn marked() -> Output {
        let marks = Marks {
            bars: vec!["percent".to_owned()],
            coloured: vec!["status".to_owned()],
            tones: vec![Tone::Good, Tone::Bad],
        };
        let row = |cells: [&str; 3]| cells.map(str::to_owned).to_vec();
        let rows = vec![row(["a", "62.00", "ok"]), row(["b", NOTHING, "spent"])];
        Output::of_json(Value::Null).marked_table(&["name", "percent", "status"], rows, marks)
    }

    #[test]
    fn a_bar_is_empty_at_nothing_and_full_at_all() {
        for (percent, expected) in [
            (0.0, "░░░░░░░░░░   0.00 %"),
            (0.5, "█░░░░░░░░░   0.50 %"),
            (62.0, "███████░░░  62.00 %"),
            (100.0, "██████████ 100.00 %"),
            (250.0, "██████████ 250.00 %"),
        ] {
            assert_eq!(bar(percent), expected);
        }
    }

    #[test]
    fn bars_are_for_people_and_colours_for_terminals_that_allow_them() {
        let plain = marked().render(OutputMode::Table, Look::Plain);
        assert_eq!(
            plain,
            "name  percent              status\na     ███████░░░  62.00 %  ok\nb     –                    spent\n"
        );
        let csv = marked().render(OutputMode::Csv, Look::Coloured);
        assert_eq!(csv, "name,percent,status\r\na,62.00,ok\r\nb,,spent\r\n");
        let coloured = marked().render(OutputMode::Table, Look::Coloured);
        assert!(coloured.starts_with("\u{1b}[1mname"), "{coloured:?}");
        for (cell, colour) in [("ok", "\u{1b}[38;5;10m"), ("spent", "\u{1b}[38;5;9m")] {
            assert!(
                coloured.contains(&format!("{colour}{cell}")),
                "{coloured:?}"
            );
        }
        let fitted = marked().render(OutputMode::Table, Look::Fitted);
        assert!(!fitted.contains('\u{1b}'), "{fitted:?}");
    }

    #[test]
    fn a_screen_is_written_over_without_being_cleared_first() {
        assert_eq!(
            in_place("one\ntwo\n"),
            "\u{1b}[Hone\u{1b}[K\ntwo\u{1b}[K\n\u{1b}[J"
        );
    }

    #[test]
    fn an_output_travels_whole() {
        let sent = marked().table(&["a"], vec![]).note("n");
        let text = serde_json::to_string(&sent).unwrap();
        assert_eq!(serde_json::from_str::<Output>(&text).unwrap(), sent);
    }
}
