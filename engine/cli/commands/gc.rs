//! `gc`: removes from a store what nothing refers to.

use std::collections::BTreeMap;

use engine_store::{Garbage, GcOptions};
use serde_json::json;

use super::print_json;
use crate::args::GcArgs;
use crate::exit::Exit;
use crate::project::find_store;
use crate::text::{bytes, count, lines, table};

pub(crate) fn gc(arguments: &GcArgs) -> anyhow::Result<Exit> {
    let store = find_store(&arguments.store)?;
    let garbage = store.find_garbage(&GcOptions {
        older_than: arguments.older_than,
        grace: arguments.grace,
        keep_runs: arguments.keep_runs,
    })?;
    if !arguments.dry_run {
        for object in &garbage.objects {
            store.remove_garbage(object)?;
        }
    }
    if arguments.json {
        print_json(&garbage_json(&garbage, arguments.dry_run))?;
    } else if !garbage.objects.is_empty() {
        println!("{}", summary(&garbage));
    }
    if let Some(run) = &garbage.held_by {
        eprintln!(
            "run {run} has not ended and may be at work: nothing is removed; when it is known to be dead, give --older-than (and --grace) less than the time since its last record"
        );
    }
    if let Some(reason) = &garbage.media_kept {
        eprintln!("all media stay, since it cannot be known which are used: {reason}");
    }
    eprintln!(
        "{} objects, {}, {} from {}",
        count(garbage.objects.len() as u64),
        bytes(total(&garbage)),
        if arguments.dry_run {
            "would be removed"
        } else {
            "removed"
        },
        store.url()
    );
    Ok(Exit::Done)
}

fn total(garbage: &Garbage) -> u64 {
    garbage.objects.iter().map(|object| object.bytes).sum()
}

/// Objects and bytes by kind.
fn summary(garbage: &Garbage) -> String {
    let mut kinds: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    for object in &garbage.objects {
        let (objects, size) = kinds.entry(object.kind.as_str()).or_default();
        *objects += 1;
        *size += object.bytes;
    }
    let mut table = table(&["what", "objects", "size"], &[1, 2]);
    for (kind, (objects, size)) in kinds {
        table.add_row([kind, &count(objects), &bytes(size)]);
    }
    lines(&table)
}

fn garbage_json(garbage: &Garbage, is_dry_run: bool) -> serde_json::Value {
    let objects: Vec<_> = garbage
        .objects
        .iter()
        .map(|object| {
            json!({
                "kind": object.kind.as_str(),
                "path": object.path,
                "bytes": object.bytes,
            })
        })
        .collect();
    json!({
        "dry_run": is_dry_run,
        "objects": objects,
        "bytes": total(garbage),
        "held_by": garbage.held_by,
        "media_kept": garbage.media_kept,
    })
}
