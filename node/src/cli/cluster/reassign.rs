//! `cluster reassign`: where partitions shall be.
//!
//! The file is that of Kafka's `kafka-reassign-partitions`:
//!
//! ```json
//! {"version": 1, "partitions": [{"topic": "orders", "partition": 0, "replicas": [1, 2, 3]}]}
//! ```

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use kittiwake_proto::kittiwake::admin::v1 as admin;
use serde::{Deserialize, Serialize};

use super::outcome;
use crate::cli::output::{Output, Table, ids, print};
use crate::cli::remote::{Client, answer};

/// What is to be done: exactly one of them.
#[derive(clap::Args, Debug)]
#[group(id = "reassignment", required = true, multiple = true)]
pub(super) struct Args {
    /// Move the partitions of this file, in the format of kafka-reassign-partitions
    #[arg(long, value_name = "JSON", conflicts_with_all = ["topic", "list"])]
    file: Option<PathBuf>,
    /// Move a partition of this topic
    #[arg(long, short, requires = "partition", conflicts_with = "list")]
    topic: Option<String>,
    /// Which partition
    #[arg(long, short, requires = "topic")]
    partition: Option<i32>,
    /// Its replicas afterwards, the preferred leader first
    #[arg(
        long,
        short,
        value_name = "1,2,3",
        value_delimiter = ',',
        requires = "topic",
        conflicts_with = "cancel"
    )]
    replicas: Vec<i32>,
    /// Cancel the moves of these partitions, or with nothing else of all
    #[arg(long, conflicts_with = "list")]
    cancel: bool,
    /// Show the partitions that move
    #[arg(long)]
    list: bool,
}

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    version: Option<u32>,
    partitions: Vec<Wanted>,
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
struct Wanted {
    topic: String,
    partition: i32,
    #[serde(default)]
    replicas: Vec<i32>,
}

#[derive(Serialize)]
struct Ongoing {
    topic: String,
    partition: i32,
    replicas: Vec<i32>,
    adding: Vec<i32>,
    removing: Vec<i32>,
    isr: Vec<i32>,
}

pub(super) async fn run(client: &mut Client, output: Output, args: Args) -> anyhow::Result<()> {
    if args.list {
        return print(output, &ongoing(client).await?, |moves| table(moves));
    }
    let mut wanted = match (&args.file, args.topic, args.partition) {
        (Some(file), _, _) => read(file)?,
        (None, Some(topic), Some(partition)) => vec![Wanted {
            topic,
            partition,
            replicas: args.replicas,
        }],
        _ if args.cancel => {
            let all = ongoing(client).await?.into_iter();
            all.map(|one| Wanted {
                topic: one.topic,
                partition: one.partition,
                replicas: Vec::new(),
            })
            .collect()
        }
        _ => bail!("nothing to reassign: give --file, --topic and --partition, --cancel or --list"),
    };
    if args.cancel {
        wanted.iter_mut().for_each(|one| one.replicas.clear());
    } else if let Some(one) = wanted.iter().find(|one| one.replicas.is_empty()) {
        bail!("{}-{} is given no replicas", one.topic, one.partition);
    }
    let moves = wanted.into_iter().map(|one| admin::PartitionMove {
        topic: one.topic,
        partition: one.partition,
        replicas: one.replicas,
    });
    let request = admin::AlterReassignmentsRequest {
        moves: moves.collect(),
    };
    let results = answer(client.alter_reassignments(request).await)?.results;
    let done = if args.cancel { "cancelled" } else { "moving" };
    outcome(output, &results, done, "no partition moves")
}

fn read(file: &Path) -> anyhow::Result<Vec<Wanted>> {
    let text =
        fs::read_to_string(file).with_context(|| format!("{} cannot be read", file.display()))?;
    parse(&text).with_context(|| format!("{} cannot be used", file.display()))
}

fn parse(text: &str) -> anyhow::Result<Vec<Wanted>> {
    let File {
        version,
        partitions,
    } = serde_json::from_str(text)?;
    match version {
        None | Some(1) => Ok(partitions),
        Some(other) => bail!("its version is {other}, not 1"),
    }
}

async fn ongoing(client: &mut Client) -> anyhow::Result<Vec<Ongoing>> {
    let request = admin::ListReassignmentsRequest {};
    let listed = answer(client.list_reassignments(request).await)?;
    let ongoing = listed.reassignments.into_iter().map(|one| Ongoing {
        topic: one.topic,
        partition: one.partition,
        replicas: one.replicas,
        adding: one.adding,
        removing: one.removing,
        isr: one.isr,
    });
    Ok(ongoing.collect())
}

fn table(moves: &[Ongoing]) -> String {
    let mut table = Table::new(["PARTITION", "REPLICAS", "ADDING", "REMOVING", "ISR"]);
    for one in moves {
        table.row([
            format!("{}-{}", one.topic, one.partition),
            ids(&one.replicas),
            ids(&one.adding),
            ids(&one.removing),
            ids(&one.isr),
        ]);
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_kafkas() {
        let text = r#"{"version":1,"partitions":[{"topic":"a","partition":3,"replicas":[2,1],"log_dirs":["any","any"]}]}"#;
        let wanted = Wanted {
            topic: "a".into(),
            partition: 3,
            replicas: vec![2, 1],
        };
        assert_eq!(parse(text).unwrap(), [wanted]);
        assert!(parse(r#"{"version":2,"partitions":[]}"#).is_err());
        assert!(parse("[]").is_err());
    }
}
