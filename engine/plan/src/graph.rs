//! The order of stages, and the circles that prevent one.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};

use petgraph::algo::tarjan_scc;
use petgraph::graph::{DiGraph, NodeIndex};
use petgraph::visit::EdgeRef;
use schemas::pipeline::SourceEntry;
use schemas::problem::hint;
use schemas::{Problem, Span};

use crate::compile::Draft;

/// Stages by position in the file; an edge goes from a stage to one that reads it, and knows where that is written.
type Graph = DiGraph<usize, Span>;

/// Positions of the stages in an order in which they can run: of those that are ready, the first in the file.
/// Stages in or after a circle are left out; the circle is reported.
pub(crate) fn order(drafts: &[Draft<'_>], problems: &mut Vec<Problem>) -> Vec<usize> {
    let graph = build(drafts, problems);
    let mut component_list = tarjan_scc(&graph);
    component_list.sort();
    for component in component_list {
        let first = *component.iter().min().expect("components are not empty");
        if component.len() > 1 || graph.contains_edge(first, first) {
            problems.push(circle(&graph, first, drafts));
        }
    }

    let mut waiting: Vec<usize> = graph
        .node_indices()
        .map(|node| graph.edges_directed(node, petgraph::Incoming).count())
        .collect();
    let mut ready: BinaryHeap<Reverse<usize>> = (0..drafts.len())
        .filter(|index| waiting[*index] == 0)
        .map(Reverse)
        .collect();
    let mut order = Vec::with_capacity(drafts.len());
    while let Some(Reverse(index)) = ready.pop() {
        order.push(index);
        for edge in graph.edges(NodeIndex::new(index)) {
            let reader = edge.target().index();
            waiting[reader] -= 1;
            if waiting[reader] == 0 {
                ready.push(Reverse(reader));
            }
        }
    }
    order
}

fn build(drafts: &[Draft<'_>], problems: &mut Vec<Problem>) -> Graph {
    let mut graph = Graph::new();
    let nodes: Vec<NodeIndex> = (0..drafts.len())
        .map(|index| graph.add_node(index))
        .collect();
    let positions: BTreeMap<&str, usize> = drafts
        .iter()
        .enumerate()
        .map(|(index, draft)| (draft.entry.name.as_str(), index))
        .collect();
    for (reader, draft) in drafts.iter().enumerate() {
        let sources = draft.entry.inputs.iter().flat_map(|input| &input.sources);
        for source in sources.filter(|source| source.removed.is_none()) {
            match positions.get(source.stage.as_str()) {
                Some(&producer) => {
                    graph.add_edge(nodes[producer], nodes[reader], source.span);
                }
                None => problems.push(unknown_stage(source, drafts, &draft.entry.name)),
            }
        }
    }
    graph
}

fn unknown_stage(source: &SourceEntry, drafts: &[Draft<'_>], reader: &str) -> Problem {
    let names: Vec<&str> = drafts
        .iter()
        .map(|draft| draft.entry.name.as_str())
        .filter(|name| *name != reader)
        .collect();
    Problem::new(
        "unknown-stage",
        format!("there is no stage `{}`", source.stage),
        source.span,
    )
    .with_label("unknown stage")
    .with_help(hint(&source.stage, &names, "stages"))
}

/// The shortest way from a stage back to itself.
fn circle(graph: &Graph, first: NodeIndex, drafts: &[Draft<'_>]) -> Problem {
    let mut came_from: BTreeMap<NodeIndex, (NodeIndex, Span)> = BTreeMap::new();
    let mut queue = VecDeque::from([first]);
    while let Some(node) = queue.pop_front() {
        if came_from.contains_key(&first) {
            break;
        }
        let mut edges: Vec<_> = graph.edges(node).collect();
        edges.sort_by_key(EdgeRef::target);
        for edge in edges {
            came_from.entry(edge.target()).or_insert_with(|| {
                queue.push_back(edge.target());
                (node, *edge.weight())
            });
        }
    }
    let mut steps: Vec<(NodeIndex, Span)> = Vec::new();
    let mut node = first;
    loop {
        let (previous, span) = came_from[&node];
        steps.push((node, span));
        node = previous;
        if node == first {
            break;
        }
    }
    steps.reverse();

    let name = |node: NodeIndex| format!("`{}`", drafts[node.index()].entry.name);
    let path: Vec<String> = std::iter::once(first)
        .chain(steps.iter().map(|(node, _)| *node))
        .map(name)
        .collect();
    let message = format!("stages read each other in a circle: {}", path.join(" -> "));
    let mut problem = Problem::new("cycle", message, steps[0].1)
        .with_label(format!("{} reads {}", path[1], path[0]));
    for (index, (_, span)) in steps.iter().enumerate().skip(1) {
        problem = problem.with_other(*span, format!("{} reads {}", path[index + 1], path[index]));
    }
    problem.with_help("a pipeline runs once from start to end: let one of them read something else")
}
