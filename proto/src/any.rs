//! Messages inside `google.protobuf.Any`.

use prost::{Message, Name};
use prost_types::Any;

/// The message with its type's name.
pub fn any<M: Message + Name>(message: &M) -> Any {
    Any {
        type_url: format!("type.googleapis.com/{}", M::full_name()),
        value: message.encode_to_vec(),
    }
}
