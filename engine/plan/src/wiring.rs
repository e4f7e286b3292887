//! Ports and what flows into them.

use std::collections::BTreeMap;
use std::sync::Arc;

use engine_core::{InputPort, InputType, PortType, PortTypes, Ports};
use schemas::pipeline::{InputEntry, SourceEntry};
use schemas::problem::{hint, listed, nearest};
use schemas::yaml::Document;
use schemas::{Problem, TableName};

use crate::columns;
use crate::compile::{Draft, Operator, locate};
use crate::plan::Source;

/// A stage whose types are known.
pub(crate) struct Wired {
    pub(crate) inputs: BTreeMap<String, Vec<Source>>,
    pub(crate) outputs: Vec<(String, PortType)>,
    /// The configuration as it enters the key.
    pub(crate) key_config: serde_json::Value,
}

/// The output of rows that failed.
const QUARANTINE: &str = "quarantine";

/// Types every stage, in an order in which producers come first.
pub(crate) struct Wiring<'a> {
    drafts: &'a [Draft<'a>],
    document: &'a Document,
    /// Position in the plan by stage name.
    positions: BTreeMap<&'a str, usize>,
    /// By position in the plan; nothing for a stage that could not be typed.
    wired: Vec<Option<Wired>>,
    order: &'a [usize],
}

impl<'a> Wiring<'a> {
    pub(crate) fn new(drafts: &'a [Draft<'a>], order: &'a [usize], document: &'a Document) -> Self {
        let positions = order
            .iter()
            .enumerate()
            .map(|(position, index)| (drafts[*index].entry.name.as_str(), position))
            .collect();
        Self {
            drafts,
            document,
            positions,
            wired: Vec::with_capacity(order.len()),
            order,
        }
    }

    /// The stages in plan order.
    pub(crate) fn finish(self) -> Vec<Option<Wired>> {
        self.wired
    }

    /// Types the next stage.
    pub(crate) fn connect(&mut self, index: usize, problems: &mut Vec<Problem>) {
        let wired = self.wire(&self.drafts[index], problems);
        self.wired.push(wired);
    }

    fn wire(&self, draft: &Draft<'_>, problems: &mut Vec<Problem>) -> Option<Wired> {
        let operator = draft.operator.as_ref()?;
        let mut inputs = BTreeMap::new();
        let mut types = PortTypes::new();
        let mut is_complete = draft.entry.inputs_are_known;
        for input in &draft.entry.inputs {
            match self.input(draft, operator, input, problems) {
                // An empty list is as good as no input.
                Some((sources, _)) if sources.is_empty() => {}
                Some((sources, port_types)) => {
                    inputs.insert(input.port.text.clone(), sources);
                    types.insert(input.port.text.clone(), port_types);
                }
                None => is_complete = false,
            }
        }
        if draft.entry.inputs_are_known {
            is_complete &= report_missing(draft, operator, problems);
        }
        if !is_complete {
            // Faults of values do not depend on the inputs, so they need not wait until the inputs are right.
            if let Some(assumed) = assumed_types(&operator.ports, &types)
                && let Err(faults) = operator.config.output_types(&assumed)
            {
                let own = faults
                    .into_iter()
                    .filter(|fault| !fault.path.is_empty() && fault.code != "missing-column");
                problems.extend(own.map(|fault| {
                    locate(self.document, &draft.entry.name, operator.entry.kind, fault)
                }));
            }
            return None;
        }
        match operator.config.output_types(&types) {
            Ok(outputs) => {
                let mut outputs = in_port_order(operator, outputs);
                if draft.entry.quarantine.is_some() {
                    let rows = PortType::table(TableName::Quarantine);
                    outputs.push((QUARANTINE.to_owned(), rows));
                }
                Some(Wired {
                    inputs,
                    outputs,
                    key_config: operator.config.key_config(&operator.canonical, &types),
                })
            }
            Err(faults) => {
                problems.extend(faults.into_iter().map(|fault| {
                    locate(self.document, &draft.entry.name, operator.entry.kind, fault)
                }));
                None
            }
        }
    }

    /// Sources and types of one input; nothing when something is wrong with it or with what comes before.
    fn input(
        &self,
        draft: &Draft<'_>,
        operator: &Operator<'_>,
        input: &InputEntry,
        problems: &mut Vec<Problem>,
    ) -> Option<(Vec<Source>, Vec<PortType>)> {
        let open = InputPort::new(&input.port.text, InputType::AnyTable);
        let declared = operator
            .ports
            .inputs
            .iter()
            .find(|port| port.name == input.port.text);
        let Some(port) = declared.or(operator.ports.open_inputs.then_some(&open)) else {
            let names: Vec<&str> = operator
                .ports
                .inputs
                .iter()
                .map(|port| port.name.as_str())
                .collect();
            let help = if names.is_empty() {
                "remove `inputs`: this operator reads no stage".to_owned()
            } else {
                hint(&input.port.text, &names, "inputs")
            };
            problems.push(
                Problem::new(
                    "unknown-port",
                    format!(
                        "`{}` has no input `{}`",
                        operator.entry.kind, input.port.text
                    ),
                    input.port.span,
                )
                .with_label("unknown input")
                .with_help(help),
            );
            return None;
        };
        if input.is_list && !port.many {
            let span = input
                .sources
                .first()
                .map_or(input.port.span, |source| source.span);
            let message = format!(
                "the input `{}` of `{}` takes one stage, not a list",
                port.name, operator.entry.kind
            );
            let mut problem = Problem::new("wrong-type", message, span)
                .with_label("expected one stage without brackets");
            if port.accepts != InputType::Model {
                problem = problem.with_help("join tables with a `mix` or `sql` stage first");
            }
            problems.push(problem);
            return None;
        }
        let (removed, left): (Vec<&SourceEntry>, Vec<&SourceEntry>) = input
            .sources
            .iter()
            .partition(|source| source.removed.is_some());
        if let Some(source) = removed.first()
            && !port.optional
            && (left.is_empty() || !port.many)
        {
            problems.push(removed_input(draft, port, source));
            return None;
        }
        let mut sources = Vec::new();
        let mut types = Vec::new();
        let mut is_right = true;
        for source in left {
            match self.source(draft, port, source, problems) {
                Some((source, port_type)) => {
                    sources.push(source);
                    types.push(port_type);
                }
                None => is_right = false,
            }
        }
        is_right.then_some((sources, types))
    }

    fn source(
        &self,
        draft: &Draft<'_>,
        port: &InputPort,
        source: &SourceEntry,
        problems: &mut Vec<Problem>,
    ) -> Option<(Source, PortType)> {
        // Unknown stages and circles are reported by the graph.
        let position = *self.positions.get(source.stage.as_str())?;
        let producer = &self.drafts[self.order[position]];
        let operator = producer.operator.as_ref()?;
        let has_quarantine = producer.entry.quarantine_span.is_some();
        let outputs: Vec<&str> = operator
            .ports
            .outputs
            .iter()
            .map(|port| port.name.as_str())
            .chain(has_quarantine.then_some(QUARANTINE))
            .collect();
        let name = source.port.as_deref().or(outputs.first().copied());
        let Some(name) = name.filter(|name| outputs.contains(name)) else {
            let wanted = source.port.as_deref().unwrap_or_default();
            problems.push(
                Problem::new(
                    "unknown-port",
                    format!("stage `{}` has no output `{wanted}`", source.stage),
                    source.span,
                )
                .with_label("unknown output")
                .with_other(
                    producer.entry.span,
                    format!("`{}` gives {}", operator.entry.kind, listed(&outputs)),
                )
                .with_help(hint(wanted, &outputs, "outputs")),
            );
            return None;
        };
        let wired = self.wired.get(position)?.as_ref()?;
        let (_, port_type) = wired.outputs.iter().find(|(port, _)| port == name)?;
        let edge = columns::Edge {
            reader: &draft.entry.name,
            port,
            source,
            output: name,
            producer: producer.entry,
        };
        let found = columns::check(&edge, port_type);
        let is_right = found.is_empty();
        problems.extend(found);
        is_right.then(|| {
            (
                Source {
                    stage: position,
                    port: name.to_owned(),
                },
                port_type.clone(),
            )
        })
    }
}

/// A condition took away what a port needs.
fn removed_input(draft: &Draft<'_>, port: &InputPort, source: &SourceEntry) -> Problem {
    let all = if port.many { "everything" } else { "the stage" };
    let message = format!(
        "{all} that the input `{}` of stage `{}` reads was removed by `when`",
        port.name, draft.entry.name
    );
    let mut problem = Problem::new("removed-input", message, source.span)
        .with_label(format!("`{}` is not there", source.stage))
        .with_help("give this stage the same `when`, or let it read something else");
    if let Some(when) = source.removed {
        problem = problem.with_other(when, "this condition does not hold");
    }
    problem
}

fn report_missing(draft: &Draft<'_>, operator: &Operator<'_>, problems: &mut Vec<Problem>) -> bool {
    let mut is_complete = true;
    for port in operator.ports.inputs.iter().filter(|port| !port.optional) {
        let given = draft
            .entry
            .inputs
            .iter()
            .find(|input| input.port.text == port.name);
        if given.is_some_and(|input| !input.sources.is_empty()) {
            continue;
        }
        is_complete = false;
        let is_mistyped = draft.entry.inputs.iter().any(|input| {
            let is_declared = operator
                .ports
                .inputs
                .iter()
                .any(|port| port.name == input.port.text);
            !is_declared && nearest(&input.port.text, &[port.name.as_str()]).is_some()
        });
        if is_mistyped {
            continue;
        }
        let span = given.map_or(operator.span, |input| input.port.span);
        problems.push(
            Problem::new(
                "missing-input",
                format!(
                    "stage `{}` lacks the input `{}`",
                    draft.entry.name, port.name
                ),
                span,
            )
            .with_label(format!(
                "`{}` needs {}",
                operator.entry.kind,
                columns::wanted(&port.accepts)
            ))
            .with_help(format!("write `inputs: {{ {}: <stage> }}`", port.name)),
        );
    }
    is_complete
}

/// The types that the ports ask for, where the connected ones are not known. Nothing when a port takes any table.
fn assumed_types(ports: &Ports, known: &PortTypes) -> Option<PortTypes> {
    if ports.open_inputs {
        return None;
    }
    let mut types = known.clone();
    for port in ports
        .inputs
        .iter()
        .filter(|port| !port.optional && !known.contains_key(&port.name))
    {
        let assumed = match &port.accepts {
            InputType::Model => PortType::Model,
            InputType::Columns(schema) => PortType::Table {
                table: TableName::Rows,
                schema: Arc::clone(schema),
            },
            InputType::AnyTable => return None,
        };
        types.insert(port.name.clone(), vec![assumed]);
    }
    Some(types)
}

fn in_port_order(operator: &Operator<'_>, mut types: PortTypes) -> Vec<(String, PortType)> {
    let outputs = operator.ports.outputs.iter().map(|port| {
        let mut found = types.remove(&port.name).unwrap_or_default();
        let port_type = found
            .pop()
            .expect("operators give a type for each of their outputs");
        (port.name.clone(), port_type)
    });
    outputs.collect()
}
