//! Where the facts of a reward come from: which tables and columns, and the query that brings them together.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use engine_core::Fault;
use engine_query::{ExpressionError, Expressions, side_by_side};
use operators_verdict::ScoreConfig;
use schemas::TableName;

use super::config::Score;
use super::{functions, rewards_schema};
use crate::judged::is_judged;

/// How many tokens a completion has: a column that expressions can use, though no table has it.
pub(super) const TOKENS: &str = "tokens";

/// Columns of the query that are always there: which row, and its verdict.
pub(super) const COLUMNS: [&str; 4] = ["prompt_id", "sample", "verdict", "format_ok"];
/// Column of the query with what [`functions::MEASURE`] gives; null where there is no rollout.
pub(super) const MEASURED: &str = "measured";
/// Column of the query that is null where there is no prompt.
pub(super) const PROMPT: &str = "prompt";
/// Column of the query with what [`functions::JOINED`] gives.
pub(super) const JOINED: &str = "joined";

/// Columns that name a row, which all tables share.
const KEYS: [&str; 2] = ["prompt_id", "sample"];

/// SQL parts that are computed over the same rows.
#[derive(Debug)]
pub(super) struct SqlParts {
    /// Place of each among all SQL parts.
    pub(super) places: Vec<usize>,
    pub(super) expressions: Expressions,
    /// The columns that they use, in the order of arguments.
    pub(super) columns: Vec<FieldRef>,
}

/// What is read, and what is computed from it where.
#[derive(Debug)]
pub(super) struct Sources {
    pub(super) config: ScoreConfig,
    /// Computed over rollouts, before they are joined: their texts stay behind.
    pub(super) measured: SqlParts,
    /// Computed over rows of all tables.
    pub(super) joined: SqlParts,
    /// Columns of rollouts that are measured: for the parts of ours and for `measured`.
    pub(super) measured_columns: Vec<FieldRef>,
    reads_rollouts: bool,
    reads_prompts: bool,
    /// The table of each column of `joined`.
    tables: Vec<Table>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Table {
    Verdicts,
    Rollouts,
    Prompts,
}

impl Table {
    fn port(self) -> &'static str {
        match self {
            Self::Verdicts => "verdicts",
            Self::Rollouts => "rollouts",
            Self::Prompts => "prompts",
        }
    }
}

/// The tables by their columns, in the order in which a name is looked up.
struct Tables {
    verdicts: SchemaRef,
    rollouts: SchemaRef,
    prompts: SchemaRef,
}

impl Tables {
    fn of(&self, column: &str) -> Table {
        let has = |schema: &SchemaRef| schema.field_with_name(column).is_ok();
        if has(&self.verdicts) {
            Table::Verdicts
        } else if column == TOKENS || has(&self.rollouts) {
            Table::Rollouts
        } else {
            Table::Prompts
        }
    }

    fn all(&self) -> SchemaRef {
        let tokens = Schema::new(vec![Field::new(TOKENS, DataType::Int64, true)]);
        side_by_side(&[&self.verdicts, &tokens, &self.rollouts, &self.prompts])
    }

    fn has_token_ids(&self) -> bool {
        let column = self.rollouts.field_with_name("token_ids");
        column.is_ok_and(|column| match column.data_type() {
            DataType::LargeList(item) => item.data_type() == &DataType::UInt32,
            _ => false,
        })
    }

    /// Whether an expression needs nothing but rollouts.
    fn has_rollouts_alone(&self, columns: &BTreeSet<String>) -> bool {
        let is_of_rollouts = |column: &String| self.of(column) == Table::Rollouts;
        columns.iter().any(is_of_rollouts)
            && columns
                .iter()
                .all(|column| KEYS.contains(&column.as_str()) || is_of_rollouts(column))
    }

    /// A fault for each part that looks at a table that is not connected; `connected` is for rollouts and prompts.
    fn missing(
        &self,
        score: &Score,
        compiled: &Expressions,
        connected: (bool, bool),
    ) -> Vec<Fault> {
        let mut faults = Vec::new();
        if let Some(part) = score.part_over_rollouts().filter(|_| !connected.0) {
            let path = vec![part.to_owned()];
            faults.push(not_connected(
                Table::Rollouts,
                part,
                path,
                "looks at rollouts",
            ));
        }
        for (name, columns) in score.sql.keys().zip(compiled.columns_of_each()) {
            let path = || ["sql", name, "expression"].map(str::to_owned).to_vec();
            for (table, is_connected) in [
                (Table::Rollouts, connected.0),
                (Table::Prompts, connected.1),
            ] {
                let used = columns.iter().find(|column| self.of(column) == table);
                if let Some(column) = used.filter(|_| !is_connected) {
                    let what = format!("uses `{column}`, a column of {}", table.port());
                    faults.push(not_connected(table, name, path(), &what));
                }
            }
            let counts = columns.contains(TOKENS) && self.of(TOKENS) == Table::Rollouts;
            if counts && connected.0 && !self.has_token_ids() {
                let message =
                    "`tokens` is the number of `token_ids`, and these rollouts have no such lists";
                let help = "connect what a `rollout` stage writes, or use a column that is there";
                faults.push(Fault {
                    path: path(),
                    message: message.to_owned(),
                    help: Some(help.to_owned()),
                    code: "missing-column",
                });
            }
        }
        faults
    }
}

impl Sources {
    /// Finds out what must be read. A table that is not connected is None.
    pub(super) fn new(
        score: &Score,
        verdicts: &SchemaRef,
        rollouts: Option<SchemaRef>,
        prompts: Option<SchemaRef>,
    ) -> Result<Self, Vec<Fault>> {
        let config = score.parts();
        let connected = (rollouts.is_some(), prompts.is_some());
        // Expressions over a table that is not connected are understood, to say which one is missing.
        let tables = Tables {
            verdicts: Arc::clone(verdicts),
            rollouts: rollouts.unwrap_or_else(|| TableName::Rollouts.schema()),
            prompts: prompts.unwrap_or_else(|| TableName::Prompts.schema()),
        };
        let all = tables.all();
        let parts = config.sql_parts();
        let compiled = Expressions::compile(&parts, &all)
            .map_err(|errors| errors.into_iter().map(expression_fault).collect::<Vec<_>>())?;

        let faults = tables.missing(score, &compiled, connected);
        if !faults.is_empty() {
            return Err(faults);
        }
        let (alone, together) = (0..parts.len()).partition(|place| {
            let columns = compiled.columns_of_each().nth(*place);
            columns.is_some_and(|columns| tables.has_rollouts_alone(columns))
        });
        let group = |places: Vec<usize>| sql_parts(&parts, places, &all);
        let (measured, joined) = (group(alone), group(together));
        let reads = |kind| {
            compiled
                .columns()
                .iter()
                .any(|column| tables.of(column) == kind)
        };
        let reads_rollouts = score.part_over_rollouts().is_some() || reads(Table::Rollouts);
        let reads_prompts = reads(Table::Prompts);
        let mut names: Vec<&str> = score.rollout_columns();
        let is_counted = |column: &FieldRef| column.name() == TOKENS;
        if measured.columns.iter().any(is_counted) || joined.columns.iter().any(is_counted) {
            names.push("token_ids");
        }
        let names = names.into_iter().chain(
            measured
                .columns
                .iter()
                .map(|column| column.name().as_str())
                .filter(|name| *name != TOKENS),
        );
        let measured_columns = if reads_rollouts {
            fields(names, &tables.rollouts)
        } else {
            Vec::new()
        };
        let of_columns = joined.columns.iter().map(|column| tables.of(column.name()));
        Ok(Self {
            tables: of_columns.collect(),
            config,
            measured,
            joined,
            measured_columns,
            reads_rollouts,
            reads_prompts,
        })
    }

    /// Columns of the rewards, before anything is said of groups.
    pub(super) fn schema(&self) -> SchemaRef {
        rewards_schema(&self.config.part_names())
    }

    pub(super) fn reads_rollouts(&self) -> bool {
        self.reads_rollouts
    }

    pub(super) fn reads_prompts(&self) -> bool {
        self.reads_prompts
    }

    /// Whether rows of several tables are brought together: two of one sample are then a mistake.
    pub(super) fn joins(&self) -> bool {
        self.reads_rollouts || self.reads_prompts
    }

    /// Columns of `joined` that come as they are; the number of tokens comes with what is measured.
    pub(super) fn joined_here(&self) -> impl Iterator<Item = &FieldRef> {
        let columns = self.joined.columns.iter().zip(&self.tables);
        let here = columns.filter(|(column, table)| is_here(column, **table));
        here.map(|(column, _)| column)
    }

    /// The queries over each table alone, in the order of its rows: verdicts, rollouts, prompts. The columns that name a row
    /// come first; the judged verdicts are not chosen.
    pub(super) fn queries_apart(&self) -> [String; 3] {
        let columns = |table: Table, first: &[&str], more: &[FieldRef]| {
            let joined = self.joined.columns.iter().zip(&self.tables);
            let joined = joined.filter(|(column, of)| **of == table && is_here(column, **of));
            let names = more.iter().chain(joined.map(|(column, _)| column));
            let mut listed: Vec<String> = first.iter().map(|name| quoted(name)).collect();
            for name in names.map(|column| quoted(column.name())) {
                if !listed.contains(&name) {
                    listed.push(name);
                }
            }
            format!("SELECT {} FROM {}", listed.join(", "), table.port())
        };
        [
            columns(Table::Verdicts, &COLUMNS, &[]),
            columns(Table::Rollouts, &KEYS, &self.measured_columns),
            columns(Table::Prompts, &KEYS[..1], &[]),
        ]
    }

    /// Which of the tables of [`Sources::queries_apart`] each column of [`Sources::joined_here`] is in.
    pub(super) fn joined_from(&self) -> impl Iterator<Item = usize> {
        let columns = self.joined.columns.iter().zip(&self.tables);
        let here = columns.filter(|(column, table)| is_here(column, **table));
        here.map(|(_, table)| *table as usize)
    }

    /// What rewards are made of: the columns [`COLUMNS`] of judged verdicts, and where they are needed [`MEASURED`], [`PROMPT`]
    /// and [`JOINED`]; sorted by prompt and sample, or else in the order of the verdicts.
    pub(super) fn query(&self, sorted: bool) -> String {
        let mut columns: Vec<String> = COLUMNS
            .iter()
            .map(|column| format!("v.{column} AS {column}"))
            .collect();
        let mut arguments = vec!["v.sample".to_owned()];
        // The table that is named first is held in memory, unless both are large.
        let mut tables = "verdicts v".to_owned();
        let (of_rollouts, of_prompts) = self.joined_arguments(&mut arguments);
        if self.reads_rollouts {
            columns.push(format!("r.measured AS {MEASURED}"));
            arguments.insert(1, "r.measured".to_owned());
            let measured: Vec<String> = self
                .measured_columns
                .iter()
                .map(|column| format!(", {}", quoted(column.name())))
                .collect();
            tables += &format!(
                " LEFT JOIN (SELECT prompt_id AS id, sample AS place, {function}(sample{measured}) AS measured{of_rollouts} FROM rollouts) r \
                 ON r.id = v.prompt_id AND r.place = v.sample",
                function = functions::MEASURE,
                measured = measured.concat(),
            );
        }
        if self.reads_prompts {
            columns.push(format!("p.there AS {PROMPT}"));
            tables = format!(
                "(SELECT prompt_id AS id, true AS there{of_prompts} FROM prompts) p RIGHT JOIN ({tables}) ON p.id = v.prompt_id"
            );
        }
        if !self.joined.expressions.is_empty() {
            let (function, arguments) = (functions::JOINED, arguments.join(", "));
            columns.push(format!("{function}({arguments}) AS {JOINED}"));
        }
        let order = if sorted {
            " ORDER BY prompt_id, sample"
        } else {
            ""
        };
        format!(
            "SELECT {columns} FROM {tables} WHERE {judged}{order}",
            columns = columns.join(", "),
            judged = is_judged("v"),
        )
    }

    /// Adds an argument for each column of `joined`. Returns the columns that must be taken from rollouts and from prompts.
    fn joined_arguments(&self, arguments: &mut Vec<String>) -> (String, String) {
        let (mut of_rollouts, mut of_prompts) = (String::new(), String::new());
        for (place, (column, table)) in self.joined.columns.iter().zip(&self.tables).enumerate() {
            if !is_here(column, *table) {
                continue;
            }
            let name = quoted(column.name());
            let (columns, alias) = match table {
                Table::Verdicts => {
                    arguments.push(format!("v.{name}"));
                    continue;
                }
                Table::Rollouts => (&mut of_rollouts, "r"),
                Table::Prompts => (&mut of_prompts, "p"),
            };
            *columns += &format!(", {name} AS c{place}");
            arguments.push(format!("{alias}.c{place}"));
        }
        (of_rollouts, of_prompts)
    }
}

fn is_here(column: &FieldRef, table: Table) -> bool {
    table != Table::Rollouts || column.name() != TOKENS
}

fn expression_fault(error: ExpressionError) -> Fault {
    Fault {
        path: vec!["sql".to_owned(), error.name, "expression".to_owned()],
        message: error.message,
        help: error.help,
        code: "bad-query",
    }
}

fn not_connected(table: Table, part: &str, path: Vec<String>, what: &str) -> Fault {
    let port = table.port();
    let help = format!("connect the {port} of these verdicts as `{port}`, or leave the part out");
    Fault {
        path,
        message: format!("part `{part}` {what}, and the input `{port}` is not connected"),
        help: Some(help),
        code: "missing-input",
    }
}

/// Some of the SQL parts, over the columns that they use.
fn sql_parts(parts: &[(String, String)], places: Vec<usize>, all: &SchemaRef) -> SqlParts {
    let some: Vec<(String, String)> = places.iter().map(|place| parts[*place].clone()).collect();
    let expressions =
        Expressions::compile(&some, all).expect("the parts have been compiled all together");
    let used = expressions.columns();
    let columns = fields(used.iter().map(String::as_str), all);
    SqlParts {
        places,
        expressions,
        columns,
    }
}

/// Columns by name, each once, as an expression sees them: any of them may be null.
fn fields<'a>(names: impl Iterator<Item = &'a str>, schema: &Schema) -> Vec<FieldRef> {
    let mut seen = BTreeSet::new();
    names
        .filter(|name| seen.insert(*name))
        .filter_map(|name| schema.field_with_name(name).ok())
        .map(|field| Arc::new(field.clone().with_nullable(true)))
        .collect()
}

/// A name in SQL, with its case and dashes.
fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
