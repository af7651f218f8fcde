//! What lies below the node: the tiers it asks for what it does not have itself. Must never hash
//! or keep a byte: that is the engine's.

mod object;

#[expect(unused_imports, reason = "composed by node.rs")]
pub(crate) use self::object::{ObjectSettings, ObjectSettingsError, ObjectTier};
