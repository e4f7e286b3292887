//! `lineage`: what an artifact was made from, down to sources and files outside the store.

use std::cell::OnceCell;
use std::collections::BTreeSet;

use engine_plan::Plan;
use engine_store::{Manifest, Run, Store};
use serde_json::{Value, json};

use super::print_json;
use crate::args::LineageArgs;
use crate::exit::{Exit, wrong};
use crate::project::find_store;
use crate::select::{Runs, kept_document};

/// Manifests that are searched.
const MANIFESTS: usize = 100_000;
/// Digits of a digest.
const DIGITS: usize = 64;

pub(crate) fn lineage(arguments: &LineageArgs) -> anyhow::Result<Exit> {
    let store = find_store(&arguments.store)?;
    let mut history = History::read(&store)?;
    let root = history.find(&Runs::open(&store)?, &arguments.what)?;
    let tree = history.node(root, &mut Vec::new());
    if arguments.json {
        print_json(&node_json(&tree))?;
    } else {
        println!("{}", title(&tree));
        print_children(&tree, "");
    }
    Ok(Exit::Done)
}

/// A stage's result with what it was made from.
struct Node {
    /// Names of the stage in the runs that had it, the latest first.
    stages: Vec<String>,
    operator: String,
    key: String,
    created: String,
    inputs: Vec<Input>,
    files: Vec<File>,
    /// Its inputs are shown where it stands first.
    is_repeated: bool,
}

struct Input {
    port: String,
    digest: String,
    /// Absent when the result that it came from is not in the store any more.
    made_by: Option<(String, Node)>,
}

/// A file or folder outside the store.
struct File {
    field: String,
    path: Option<String>,
    digest: String,
}

/// A run with its pipeline, which is planned when somebody asks.
struct PlannedRun {
    run: Run,
    plan: OnceCell<Option<Plan>>,
}

impl PlannedRun {
    /// A pipeline of another version need not be one today; then paths are not known.
    fn plan(&self) -> Option<&Plan> {
        let read = || {
            let document = kept_document(&self.run.started);
            engine_plan::plan(&document, &crate::registry()).ok()
        };
        self.plan.get_or_init(read).as_ref()
    }
}

struct History {
    /// The latest first.
    runs: Vec<PlannedRun>,
    /// The oldest first.
    manifests: Vec<Manifest>,
    shown: BTreeSet<String>,
}

impl History {
    fn read(store: &Store) -> anyhow::Result<Self> {
        let runs = store.runs()?.into_iter().rev().map(|run| PlannedRun {
            run,
            plan: OnceCell::new(),
        });
        let runs = runs.collect();
        let mut manifests = store.recent_manifests(MANIFESTS)?;
        manifests.sort_by(|left, right| left.created.cmp(&right.created));
        Ok(Self {
            runs,
            manifests,
            shown: BTreeSet::new(),
        })
    }

    /// Place of the result that a word names: a stage, `stage@run`, or some digits.
    fn find(&self, read: &Runs<'_>, what: &str) -> anyhow::Result<usize> {
        let place = |key: &str, generation: u32| {
            let mut manifests = self.manifests.iter();
            manifests.position(|made| made.key.as_str() == key && made.generation == generation)
        };
        if let Some(found) = read.stage_of(what)? {
            let record = found.record;
            let key = record.key.as_deref();
            return key
                .and_then(|key| place(key, record.generation))
                .ok_or_else(|| {
                    wrong(format!(
                        "stage `{what}` has no result in the store; run the pipeline first"
                    ))
                });
        }
        let made = read.by_digits(what)?;
        made.and_then(|manifest| place(manifest.key.as_str(), manifest.generation))
            .ok_or_else(|| read.nothing(what))
    }

    /// The tree below a result; `above` are the results that it is part of.
    fn node(&mut self, index: usize, above: &mut Vec<usize>) -> Node {
        let manifest = self.manifests[index].clone();
        let key = manifest.key.to_string();
        let is_repeated = !self.shown.insert(key.clone());
        let mut inputs = Vec::new();
        above.push(index);
        let ports = manifest.material["inputs"].as_object();
        for (port, digests) in ports.into_iter().flatten().filter(|_| !is_repeated) {
            let digests = digests.as_array().into_iter().flatten();
            for (place, digest) in digests.filter_map(Value::as_str).enumerate() {
                let maker = self.maker(&key, port, place, digest, above);
                inputs.push(Input {
                    port: port.clone(),
                    digest: digest.to_owned(),
                    made_by: maker.map(|(index, port)| (port, self.node(index, above))),
                });
            }
        }
        above.pop();
        Node {
            stages: self.names(&key),
            files: self.files(&key, &manifest.material["config"]),
            operator: manifest.kind,
            created: manifest.created,
            key,
            inputs,
            is_repeated,
        }
    }

    /// The result that an input came from, with its port: as the latest run with this stage was wired, else the first
    /// one that made the artifact.
    fn maker(
        &self,
        key: &str,
        port: &str,
        place: usize,
        digest: &str,
        above: &[usize],
    ) -> Option<(usize, String)> {
        let holds = |index: usize, port: &str| {
            let output = self.manifests[index].outputs.get(port);
            output.is_some_and(|artifact| artifact.digest().as_str() == digest)
        };
        let wired = self.runs.iter().find_map(|planned| {
            let run = &planned.run;
            let record = with_key(run, key)?;
            let plan = planned.plan()?;
            let stage = &plan.stages[plan.index_of(&record.stage)?];
            let source = stage.inputs.get(port)?.get(place)?;
            let name = &plan.stages[source.stage].name;
            let source_record = run.stages.iter().find(|record| record.stage == *name)?;
            let key = source_record.key.as_deref()?;
            let index = (self.manifests.iter()).position(|made| made.key.as_str() == key)?;
            holds(index, &source.port).then(|| (index, source.port.clone()))
        });
        let by_content = || {
            let indices = (0..self.manifests.len()).filter(|index| !above.contains(index));
            indices
                .flat_map(|index| {
                    let ports = self.manifests[index].outputs.keys();
                    ports.map(move |port| (index, port.clone()))
                })
                .find(|(index, port)| holds(*index, port))
        };
        wired
            .filter(|(index, _)| !above.contains(index))
            .or_else(by_content)
    }

    fn names(&self, key: &str) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        for record in self.runs.iter().flat_map(|planned| &planned.run.stages) {
            if record.key.as_deref() == Some(key) && !names.contains(&record.stage) {
                names.push(record.stage.clone());
            }
        }
        names
    }

    /// Files outside the store: in a key their digests stand where the configuration has paths.
    fn files(&self, key: &str, config: &Value) -> Vec<File> {
        let externals = self.runs.iter().find_map(|planned| {
            let record = with_key(&planned.run, key)?;
            let plan = planned.plan()?;
            let stage = &plan.stages[plan.index_of(&record.stage)?];
            Some(stage.externals.clone())
        });
        match externals {
            Some(externals) => externals
                .into_iter()
                .filter_map(|external| {
                    Some(File {
                        digest: config.pointer(&external.pointer)?.as_str()?.to_owned(),
                        path: Some(external.path.display().to_string()),
                        field: external.pointer.trim_start_matches('/').replace('/', "."),
                    })
                })
                .collect(),
            None => {
                let mut files = Vec::new();
                digests_in(config, "", &mut files);
                files
            }
        }
    }
}

fn with_key<'a>(run: &'a Run, key: &str) -> Option<&'a schemas::record::StageRecord> {
    let mut records = run.stages.iter();
    records.find(|record| record.key.as_deref() == Some(key))
}

/// Values of a configuration that are digests.
fn digests_in(value: &Value, field: &str, found: &mut Vec<File>) {
    let inner = |name: &str| match field {
        "" => name.to_owned(),
        _ => format!("{field}.{name}"),
    };
    match value {
        Value::String(text)
            if text.len() == DIGITS && text.bytes().all(|digit| digit.is_ascii_hexdigit()) =>
        {
            found.push(File {
                field: field.to_owned(),
                path: None,
                digest: text.clone(),
            });
        }
        Value::Object(fields) => {
            for (name, value) in fields {
                digests_in(value, &inner(name), found);
            }
        }
        Value::Array(values) => {
            for (index, value) in values.iter().enumerate() {
                digests_in(value, &inner(&index.to_string()), found);
            }
        }
        _ => {}
    }
}

fn node_json(node: &Node) -> Value {
    let inputs: Vec<Value> = node
        .inputs
        .iter()
        .map(|input| {
            json!({
                "port": input.port,
                "digest": input.digest,
                "from_port": input.made_by.as_ref().map(|(port, _)| port),
                "from": input.made_by.as_ref().map(|(_, node)| node_json(node)),
            })
        })
        .collect();
    let files: Vec<Value> = node
        .files
        .iter()
        .map(|file| json!({ "field": file.field, "path": file.path, "digest": file.digest }))
        .collect();
    json!({
        "stages": node.stages,
        "operator": node.operator,
        "key": node.key,
        "created": node.created,
        "files": files,
        "inputs": inputs,
        "repeated": node.is_repeated,
    })
}

fn title(node: &Node) -> String {
    let name = node
        .stages
        .first()
        .map_or("(no run has it)", String::as_str);
    let repeated = if node.is_repeated { " (see above)" } else { "" };
    format!("{name} ({}) {}{repeated}", node.operator, short(&node.key))
}

fn print_children(node: &Node, indent: &str) {
    let files = if node.is_repeated {
        &[]
    } else {
        node.files.as_slice()
    };
    let total = files.len() + node.inputs.len();
    let branch = |index: usize| if index + 1 == total { "`- " } else { "|- " };
    for (index, file) in files.iter().enumerate() {
        let path = file.path.as_deref().unwrap_or("file");
        println!(
            "{indent}{}{}: {path} {}",
            branch(index),
            file.field,
            short(&file.digest)
        );
    }
    for (index, input) in node.inputs.iter().enumerate() {
        let index = files.len() + index;
        let digest = short(&input.digest);
        match &input.made_by {
            None => println!(
                "{indent}{}{}: {digest}, whose maker is not in the store any more",
                branch(index),
                input.port
            ),
            Some((port, below)) => {
                println!(
                    "{indent}{}{}: {digest}, `{port}` of {}",
                    branch(index),
                    input.port,
                    title(below)
                );
                let bar = if index + 1 == total { "   " } else { "|  " };
                print_children(below, &format!("{indent}{bar}"));
            }
        }
    }
}

fn short(digest: &str) -> &str {
    &digest[..12.min(digest.len())]
}
