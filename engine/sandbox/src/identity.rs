//! Owns who an action is, and that it can do nothing by rank: one user, one group, no capability,
//! and no way to get one. Never maps the node's user.

use nix::unistd::{Gid, Uid, setresgid, setresuid};
use rustix::io::Errno;
use rustix::process::DumpableBehavior;
use rustix::thread::{CapabilitiesSecureBits, CapabilitySet, CapabilitySets};

use crate::INSIDE_ID;
use crate::step::{At, Step, StepFailure};

/// Bits of a capability set; the kernel says at which it stops.
const CAPABILITY_BITS: u32 = 64;

/// Takes the action's user and group. Capabilities in the sandbox's own user namespace stay: user
/// 0 does not exist in it, and only leaving that one drops them.
pub(crate) fn become_action_user() -> Result<(), StepFailure> {
    let (user, group) = (Uid::from_raw(INSIDE_ID), Gid::from_raw(INSIDE_ID));
    setresgid(group, group, group).at(Step::BecomeUser)?;
    setresuid(user, user, user).at(Step::BecomeUser)?;
    // Until the exec, which resets it: no process of this user may look into this one.
    let hidden = DumpableBehavior::NotDumpable;
    rustix::process::set_dumpable_behavior(hidden).at(Step::BecomeUser)
}

/// Drops every capability for good, in this process and in what it executes.
pub(crate) fn drop_privileges() -> Result<(), StepFailure> {
    drop_all().at(Step::DropPrivileges)
}

fn drop_all() -> rustix::io::Result<()> {
    for bit in 0..CAPABILITY_BITS {
        let capability = CapabilitySet::from_bits_retain(1 << bit);
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            // Past the last one that this kernel knows.
            Err(Errno::INVAL) => break,
            outcome => outcome?,
        }
    }
    rustix::thread::clear_ambient_capability_set()?;
    rustix::thread::set_capabilities_secure_bits(
        CapabilitiesSecureBits::NO_ROOT
            | CapabilitiesSecureBits::NO_ROOT_LOCKED
            | CapabilitiesSecureBits::NO_SETUID_FIXUP
            | CapabilitiesSecureBits::NO_SETUID_FIXUP_LOCKED
            | CapabilitiesSecureBits::KEEP_CAPS_LOCKED
            | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE
            | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE_LOCKED,
    )?;
    let none = CapabilitySet::empty();
    let sets = CapabilitySets { effective: none, permitted: none, inheritable: none };
    rustix::thread::set_capabilities(None, sets)?;
    rustix::thread::set_no_new_privs(true)
}
