//! `ringforge cluster`: asks a node for its view of the cluster and prints it. Must never trust
//! what it is told: it goes to a terminal.

use crate::{
    backing::channel::{Connect, Target, causes},
    cli::ClientTls,
    status,
};
use anyhow::{Context, anyhow};
use proto::node::{Member, ViewRequest, ViewResponse, cluster_client::ClusterClient};
use serde_json::{Value, json};
use std::{
    error::Error as _,
    fmt::Write as _,
    io::{self, Write as _},
    time::Duration,
};
use tonic::{Code, Status};

/// How long the node may take, from the first packet to its answer.
const PATIENCE: Duration = Duration::from_secs(5);

const TITLES: [&str; 9] =
    ["NODE", "ENDPOINT", "GOSSIP", "SLOTS", "RUNNING", "QUEUED", "DRAINING", "VERSION", "HEARD"];

/// Asks the node at this address and prints what it says, as a table or as JSON.
///
/// # Errors
/// One line: that is no address, nobody answers there, or somebody who has no such view.
pub(crate) fn print(address: &str, tls: ClientTls, json: bool) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let view = runtime.block_on(ask(address, tls))?;
    let text = if json { format!("{:#}\n", json_of(&view)) } else { table(&view) };
    io::stdout().write_all(text.as_bytes()).context("printing")
}

async fn ask(address: &str, tls: ClientTls) -> anyhow::Result<ViewResponse> {
    let url = match address.contains("://") {
        true => address.to_owned(),
        false => format!("grpc://{address}"),
    };
    let connect = Connect {
        url,
        ca: tls.ca,
        certificate: tls.cert,
        key: tls.key,
        headers: Vec::new(),
        connect_timeout: PATIENCE,
    };
    let mut client = ClusterClient::new(Target::new(&connect)?.open());
    let answer = tokio::time::timeout(PATIENCE, client.view(ViewRequest {})).await;
    let answer = answer.map_err(|_| anyhow!("{address} does not answer within {PATIENCE:?}"))?;
    let answer = answer.map_err(|status| refused(address, &status))?;
    Ok(answer.into_inner())
}

fn refused(address: &str, status: &Status) -> anyhow::Error {
    let why = match (status.code(), status.source()) {
        (Code::Unimplemented, _) => "it serves no ringforge.v1.Cluster".to_owned(),
        (_, Some(cause)) => causes(cause),
        (code, None) => format!("{code:?}: {}", status.message()),
    };
    anyhow!("{address} can't be asked: {}", printable(&status::short(why)))
}

/// Text of others, on one line and without commands to the terminal.
fn printable(text: &str) -> String {
    text.chars().map(|char| if char.is_control() { ' ' } else { char }).collect()
}

fn json_of(view: &ViewResponse) -> Value {
    let members = view.members.iter().map(|member| {
        let own = member.node_id == view.node_id;
        let state = member.state.as_ref();
        let platform = state.map(|state| {
            let pairs = state.platform.iter().map(|one| (one.name.clone(), one.value.clone()));
            pairs.collect::<std::collections::BTreeMap<_, _>>()
        });
        json!({
            "node_id": member.node_id,
            "own": own,
            "endpoint": state.map(|state| &state.endpoint),
            "gossip_address": member.gossip_address,
            "slots": state.map(|state| state.slots),
            "running": state.map(|state| state.running),
            "queued": state.map(|state| state.queued),
            "draining": state.map(|state| state.draining),
            "version": state.map(|state| &state.version),
            "platform": platform,
            "started_ms": state.map(|state| state.started),
            "heard_ms": member.heard_ms,
        })
    });
    json!({
        "node_id": view.node_id,
        "clustered": view.clustered,
        "members": members.collect::<Vec<_>>(),
    })
}

fn table(view: &ViewResponse) -> String {
    let rows = view.members.iter().map(|member| row(member, member.node_id == view.node_id));
    let lines: Vec<[String; 9]> = [TITLES.map(str::to_owned)].into_iter().chain(rows).collect();
    let mut widths = [0; 9];
    for line in &lines {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut text = String::new();
    for line in &lines {
        let mut whole = String::new();
        for (cell, width) in line.iter().zip(widths) {
            // A string takes all that is written to it.
            let _ = write!(whole, "{cell:width$}  ");
        }
        text.push_str(whole.trim_end());
        text.push('\n');
    }
    if !view.clustered {
        text.push_str("no cluster: this node works alone (cluster.listen is empty)\n");
    }
    text
}

/// The node that answers has a star before its name.
fn row(member: &Member, own: bool) -> [String; 9] {
    let said = |text: &str| match text {
        "" => "-".to_owned(),
        text => printable(text),
    };
    let mark = if own { "*" } else { " " };
    let node = format!("{mark} {}", said(&member.node_id));
    let gossip = said(&member.gossip_address);
    let heard = match own {
        true => "itself".to_owned(),
        false => format!("{}.{} s ago", member.heard_ms / 1000, member.heard_ms % 1000 / 100),
    };
    let unsaid = || "-".to_owned();
    let Some(state) = &member.state else {
        let [one, two, three, four, five, six] = [(); 6].map(|()| unsaid());
        return [node, one, gossip, two, three, four, five, six, heard];
    };
    let draining = if state.draining { "yes" } else { "no" };
    [
        node,
        said(&state.endpoint),
        gossip,
        state.slots.to_string(),
        state.running.to_string(),
        state.queued.to_string(),
        draining.to_owned(),
        said(&state.version),
        heard,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::node::NodeState;

    fn view() -> ViewResponse {
        let member = |node_id: &str, state| Member {
            node_id: node_id.to_owned(),
            gossip_address: "a:7946".to_owned(),
            state,
            heard_ms: 1_260,
        };
        let state = NodeState {
            endpoint: "a:8980".to_owned(),
            slots: 4,
            draining: true,
            version: "0.1.0".to_owned(),
            ..NodeState::default()
        };
        ViewResponse {
            node_id: "n1".to_owned(),
            clustered: true,
            members: vec![member("n1", Some(state)), member("a-\u{1b}[2Jlonger\n", None)],
        }
    }

    #[test]
    fn a_table_is_aligned_and_holds_no_commands_to_the_terminal() {
        let expect = "\
NODE             ENDPOINT  GOSSIP  SLOTS  RUNNING  QUEUED  DRAINING  VERSION  HEARD
* n1             a:8980    a:7946  4      0        0       yes       0.1.0    itself
  a- [2Jlonger   -         a:7946  -      -        -       -         -        1.2 s ago
";
        assert_eq!(table(&view()), expect);
    }

    #[test]
    fn json_says_what_is_not_known() {
        let json = json_of(&view());
        assert_eq!(json["members"][0]["own"], true);
        assert_eq!(json["members"][0]["slots"], 4);
        assert_eq!(json["members"][1]["slots"], Value::Null);
        assert_eq!(json["members"][1]["heard_ms"], 1_260);
    }
}
