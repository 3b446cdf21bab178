//! A data directory that is in use, belongs to another cluster, or has a newer format is refused with one clear sentence
//! and is not touched.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cluster_tests::{Cluster, run_kittiwake};

const DEADLINE: Duration = Duration::from_secs(20);

/// Starts the stopped node, which must end by itself with an error; the last line it wrote.
fn refusal(cluster: &mut Cluster) -> Result<String> {
    let node = cluster.node(0);
    let written = node.log().len();
    node.spawn()?;
    let status = node.wait_exit(DEADLINE)?;
    ensure!(!status.success(), "the node ended with {status}");
    let log = node.log();
    Ok(log[written..]
        .trim_end()
        .lines()
        .last()
        .unwrap_or_default()
        .to_owned())
}

/// Replaces `from` by `to` in meta.properties.
fn edit_meta(cluster: &mut Cluster, from: &str, to: &str) -> Result<String> {
    let path = cluster.node(0).data_directory().join("meta.properties");
    let text = std::fs::read_to_string(&path)?;
    ensure!(text.contains(from), "{from} is in {text}");
    std::fs::write(&path, text.replace(from, to))?;
    Ok(text)
}

#[test]
fn in_use_by_another_process() -> Result<()> {
    let mut cluster = Cluster::start(1)?;
    let config = cluster.node(0).config_file();
    // The same data directory, but free ports: only the directory is in the way.
    let second = config.with_file_name("second.toml");
    let text = std::fs::read_to_string(&config)?;
    let free = text
        .lines()
        .map(|line| match line.rsplit_once(':') {
            Some((head, _)) if line.contains("listener") => format!("{head}:0\""),
            _ => line.to_owned(),
        })
        .collect::<Vec<_>>();
    std::fs::write(&second, free.join("\n"))?;
    let output = run_kittiwake(&[
        "serve",
        "--config",
        second.to_str().context("a UTF-8 path")?,
    ])?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        !output.status.success() && said.contains("in use by another process"),
        "{said}"
    );
    let pid = cluster.node(0).pid();
    ensure!(
        pid.is_some() && cluster.node(0).metrics().is_ok(),
        "the first process does not notice"
    );
    Ok(())
}

#[test]
fn of_another_cluster() -> Result<()> {
    let mut cluster = Cluster::start(1)?;
    cluster.node(0).terminate()?;
    let before = edit_meta(&mut cluster, "cluster-tests", "elsewhere")?;
    let said = refusal(&mut cluster)?;
    ensure!(
        said.contains("cluster.id") && said.contains("elsewhere"),
        "{said}"
    );
    edit_meta(&mut cluster, "elsewhere", "cluster-tests")?;
    let after = std::fs::read_to_string(cluster.node(0).data_directory().join("meta.properties"))?;
    ensure!(before == after, "the refused directory was changed");
    cluster.node(0).start()?;
    Ok(())
}

#[test]
fn of_a_newer_format() -> Result<()> {
    let mut cluster = Cluster::start(1)?;
    cluster.node(0).terminate()?;
    let text = edit_meta(&mut cluster, "version=", "version=9")?;
    let said = refusal(&mut cluster)?;
    ensure!(said.contains("format version 9"), "{said}");
    std::fs::write(
        cluster.node(0).data_directory().join("meta.properties"),
        text,
    )?;
    cluster.node(0).start()?;
    Ok(())
}
