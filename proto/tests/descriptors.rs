//! Holds the compiled protocol against a table written apart from it, in both directions.

use prost::Message;
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorSet,
    field_descriptor_proto::{Label, Type},
};
use std::collections::BTreeSet;

#[test]
fn the_wire_is_what_the_table_says() {
    let table: BTreeSet<String> = include_str!("fields.txt")
        .lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty())
        .map(str::to_owned)
        .collect();
    let compiled = compiled();
    let lacking: Vec<_> = table.difference(&compiled).collect();
    let beyond: Vec<_> = compiled.difference(&table).collect();
    assert!(lacking.is_empty() && beyond.is_empty(), "lacking {lacking:#?}, beyond {beyond:#?}");
    assert!(table.len() > 370, "the table has only {} lines", table.len());
}

fn compiled() -> BTreeSet<String> {
    let set = FileDescriptorSet::decode(proto::FILE_DESCRIPTOR_SET).unwrap();
    let mut lines = BTreeSet::new();
    for file in set.file {
        let package = file.package().to_owned();
        if package == "google.protobuf" || package == "ringforge.v1" {
            continue;
        }
        for message in &file.message_type {
            add_message(&package, message, &mut lines);
        }
        for service in &file.service {
            for method in &service.method {
                let stream = |streaming| if streaming { "stream " } else { "" };
                lines.insert(format!(
                    "rpc {package}.{} {} {}{} {}{}",
                    service.name(),
                    method.name(),
                    stream(method.client_streaming()),
                    &method.input_type()[1..],
                    stream(method.server_streaming()),
                    &method.output_type()[1..],
                ));
            }
        }
    }
    lines
}

fn add_message(scope: &str, message: &DescriptorProto, lines: &mut BTreeSet<String>) {
    let scope = format!("{scope}.{}", message.name());
    for nested in &message.nested_type {
        if !nested.options.as_ref().is_some_and(|options| options.map_entry()) {
            add_message(&scope, nested, lines);
        }
    }
    for one in &message.enum_type {
        add_enum(&scope, one, lines);
    }
    for field in &message.field {
        let kind = kind(message, field);
        lines.insert(format!("field {scope} {} {} {kind}", field.name(), field.number()));
    }
}

fn add_enum(scope: &str, one: &EnumDescriptorProto, lines: &mut BTreeSet<String>) {
    for value in &one.value {
        lines.insert(format!("enum {scope}.{} {} {}", one.name(), value.name(), value.number()));
    }
}

fn kind(message: &DescriptorProto, field: &FieldDescriptorProto) -> String {
    let map = message.nested_type.iter().find(|nested| {
        nested.options.as_ref().is_some_and(|options| options.map_entry())
            && field.type_name().ends_with(&format!(".{}", nested.name()))
    });
    if let Some(map) = map {
        return format!("map<{},{}>", scalar(&map.field[0]), scalar(&map.field[1]));
    }
    match (field.label(), field.proto3_optional()) {
        (Label::Repeated, _) => format!("repeated {}", scalar(field)),
        (_, true) => format!("optional {}", scalar(field)),
        _ => scalar(field),
    }
}

fn scalar(field: &FieldDescriptorProto) -> String {
    match field.r#type() {
        Type::Message | Type::Enum => field.type_name()[1..].to_owned(),
        other => other.as_str_name().trim_start_matches("TYPE_").to_lowercase(),
    }
}
