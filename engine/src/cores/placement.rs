//! Which CPU does what: data cores, the control core, actions. Must never name a CPU that this
//! process may not use.

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// CPUs of one node, as numbered by the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// One data core each; shards beyond their number share them in turn.
    pub data: Vec<usize>,
    /// Where gossip, scheduling and other slow decisions run.
    pub control: Vec<usize>,
    /// Where actions run.
    pub actions: Vec<usize>,
}

/// What the configuration asks for; an empty list means "choose".
#[derive(Clone, Debug, Default)]
pub struct PlacementRequest {
    /// CPUs for data cores.
    pub data: Vec<usize>,
    /// CPUs for the control core.
    pub control: Vec<usize>,
    /// CPUs for actions.
    pub actions: Vec<usize>,
}

/// A CPU that was asked for and that this process may not use.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("cpus.{role} names CPU {cpu}, but this process may only use {allowed:?}")]
pub struct NotAllowed {
    role: &'static str,
    cpu: usize,
    allowed: Vec<usize>,
}

/// The CPUs that this process may use: what `taskset` or a container's cpuset left it.
///
/// # Errors
/// As sched_getaffinity(2).
pub fn allowed_cpus() -> std::io::Result<Vec<usize>> {
    let set = sched_getaffinity(None)?;
    Ok((0..CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu)).collect())
}

/// Binds the calling thread to these CPUs.
///
/// # Errors
/// As sched_setaffinity(2).
pub fn bind_thread(cpus: &[usize]) -> std::io::Result<()> {
    let mut set = CpuSet::new();
    for &cpu in cpus {
        set.set(cpu);
    }
    Ok(sched_setaffinity(None, &set)?)
}

/// Fills in what was not asked for. The data cores take the first quarter of the CPUs, at least
/// one; control takes the next; actions take what is left, control's CPU included when there are
/// fewer than eight, because control mostly sleeps.
///
/// # Errors
/// [`NotAllowed`] where a CPU was asked for by number and is not ours.
pub fn plan(request: &PlacementRequest, allowed: &[usize]) -> Result<Placement, NotAllowed> {
    for (role, cpus) in
        [("data", &request.data), ("control", &request.control), ("actions", &request.actions)]
    {
        if let Some(&cpu) = cpus.iter().find(|cpu| !allowed.contains(cpu)) {
            return Err(NotAllowed { role, cpu, allowed: allowed.to_vec() });
        }
    }
    let chosen_data = match request.data.as_slice() {
        [] => allowed[..(allowed.len() / 4).max(1).min(allowed.len())].to_vec(),
        asked => asked.to_vec(),
    };
    let rest: Vec<usize> =
        allowed.iter().copied().filter(|cpu| !chosen_data.contains(cpu)).collect();
    let rest = if rest.is_empty() { allowed.to_vec() } else { rest };
    let control = match request.control.as_slice() {
        [] => rest[..1].to_vec(),
        asked => asked.to_vec(),
    };
    let actions = match request.actions.as_slice() {
        [] if allowed.len() >= 8 => {
            rest.iter().copied().filter(|cpu| !control.contains(cpu)).collect()
        }
        [] => rest,
        asked => asked.to_vec(),
    };
    Ok(Placement { data: chosen_data, control, actions })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_asked_for_is_chosen() {
        for (cpus, data, control, actions) in [
            (vec![0], vec![0], vec![0], vec![0]),
            (vec![0, 1], vec![0], vec![1], vec![1]),
            (vec![2, 3, 6, 7], vec![2], vec![3], vec![3, 6, 7]),
            ((0..8).collect(), vec![0, 1], vec![2], vec![3, 4, 5, 6, 7]),
        ] {
            let planned = plan(&PlacementRequest::default(), &cpus);
            assert_eq!(planned, Ok(Placement { data, control, actions }), "{cpus:?}");
        }
    }

    #[test]
    fn what_is_asked_for_is_taken_or_refused() {
        let request = PlacementRequest { data: vec![1], ..PlacementRequest::default() };
        assert_eq!(plan(&request, &[0, 1]).unwrap().data, vec![1]);
        let refused = plan(&request, &[0]).unwrap_err();
        assert!(refused.to_string().contains("CPU 1"), "{refused}");
    }
}
