//! `graph`: the DAG of a pipeline for drawing.

use std::fmt::Write as _;

use engine_plan::Plan;

use serde_json::json;

use super::check::load_unchecked;
use super::print_json;
use crate::args::{GraphArgs, GraphForm};
use crate::exit::Exit;

pub(crate) fn graph(arguments: &GraphArgs) -> anyhow::Result<Exit> {
    let Some(plan) = load_unchecked(&arguments.pipeline)? else {
        return Ok(Exit::Wrong);
    };
    if arguments.json {
        print_json(&graph_json(&plan))?;
        return Ok(Exit::Done);
    }
    match arguments.format {
        GraphForm::Mermaid => print!("{}", mermaid(&plan)?),
        GraphForm::Dot => print!("{}", dot(&plan)?),
    }
    Ok(Exit::Done)
}

fn graph_json(plan: &Plan) -> serde_json::Value {
    let name = |index: usize| &plan.stages[index].name;
    let stages: Vec<_> = plan
        .stages
        .iter()
        .map(|stage| json!({ "stage": stage.name, "operator": stage.kind }))
        .collect();
    let edges: Vec<_> = edges(plan)
        .iter()
        .map(|edge| {
            json!({
                "from": name(edge.from),
                "from_port": edge.from_port,
                "to": name(edge.to),
                "to_port": edge.to_port,
            })
        })
        .collect();
    json!({ "pipeline": plan.name, "stages": stages, "edges": edges })
}

/// Nodes are numbered, since names such as `end` mean something in the language of the drawing.
fn mermaid(plan: &Plan) -> Result<String, std::fmt::Error> {
    let mut text = "flowchart TD\n".to_owned();
    for (index, stage) in plan.stages.iter().enumerate() {
        writeln!(text, "  n{index}[\"{}<br/>{}\"]", stage.name, stage.kind)?;
    }
    for edge in edges(plan) {
        writeln!(
            text,
            "  n{} -->|\"{}\"| n{}",
            edge.from,
            edge.label(),
            edge.to
        )?;
    }
    Ok(text)
}

fn dot(plan: &Plan) -> Result<String, std::fmt::Error> {
    let name = plan.name.replace('\\', "\\\\").replace('"', "\\\"");
    let mut text = format!("digraph \"{name}\" {{\n  node [shape=box];\n");
    for (index, stage) in plan.stages.iter().enumerate() {
        writeln!(
            text,
            "  n{index} [label=\"{}\\n{}\"];",
            stage.name, stage.kind
        )?;
    }
    for edge in edges(plan) {
        writeln!(
            text,
            "  n{} -> n{} [label=\"{}\"];",
            edge.from,
            edge.to,
            edge.label()
        )?;
    }
    text.push_str("}\n");
    Ok(text)
}

/// An input of a stage.
struct Edge<'a> {
    from: usize,
    from_port: &'a str,
    to: usize,
    to_port: &'a str,
}

impl Edge<'_> {
    /// Both ports, or the one name that they share.
    fn label(&self) -> String {
        if self.from_port == self.to_port {
            self.from_port.to_owned()
        } else {
            format!("{} to {}", self.from_port, self.to_port)
        }
    }
}

/// All edges: by reading stage, then by its port, then in the order of the port's list.
fn edges(plan: &Plan) -> Vec<Edge<'_>> {
    let mut edges = Vec::new();
    for (to, stage) in plan.stages.iter().enumerate() {
        for (to_port, sources) in &stage.inputs {
            edges.extend(sources.iter().map(|source| Edge {
                from: source.stage,
                from_port: &source.port,
                to,
                to_port,
            }));
        }
    }
    edges
}
