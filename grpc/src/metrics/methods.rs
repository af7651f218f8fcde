//! The methods that are counted by name. Must never grow by what a client sends: what is not
//! listed is counted as one.

/// The paths of all methods, those that are called most often first.
pub(super) const PATHS: [&str; 24] = [
    "/google.bytestream.ByteStream/Read",
    "/build.bazel.remote.execution.v2.ContentAddressableStorage/FindMissingBlobs",
    "/build.bazel.remote.execution.v2.ActionCache/GetActionResult",
    "/build.bazel.remote.execution.v2.ContentAddressableStorage/BatchReadBlobs",
    "/build.bazel.remote.execution.v2.ContentAddressableStorage/BatchUpdateBlobs",
    "/google.bytestream.ByteStream/Write",
    "/build.bazel.remote.execution.v2.Execution/Execute",
    "/build.bazel.remote.execution.v2.ActionCache/UpdateActionResult",
    "/build.bazel.remote.execution.v2.Capabilities/GetCapabilities",
    "/build.bazel.remote.execution.v2.ContentAddressableStorage/GetTree",
    "/build.bazel.remote.execution.v2.ContentAddressableStorage/SplitBlob",
    "/build.bazel.remote.execution.v2.ContentAddressableStorage/SpliceBlob",
    "/build.bazel.remote.execution.v2.Execution/WaitExecution",
    "/google.bytestream.ByteStream/QueryWriteStatus",
    "/google.longrunning.Operations/ListOperations",
    "/google.longrunning.Operations/GetOperation",
    "/google.longrunning.Operations/DeleteOperation",
    "/google.longrunning.Operations/CancelOperation",
    "/google.longrunning.Operations/WaitOperation",
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    "/ringforge.v1.Cluster/View",
];
/// How many are counted apart, with the one for all others.
pub(super) const COUNT: usize = PATHS.len() + 1;

/// Which of [`COUNT`] this path is.
pub(super) fn index(path: &str) -> usize {
    PATHS.iter().position(|known| *known == path).unwrap_or(PATHS.len())
}

/// Service and method of an index, as labels.
pub(super) fn names(index: usize) -> (&'static str, &'static str) {
    let path = PATHS.get(index).and_then(|path| path[1..].split_once('/'));
    path.unwrap_or(("other", "other"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::front::SERVICES;
    use prost::Message;
    use prost_types::FileDescriptorSet;
    use std::collections::BTreeSet;

    #[test]
    fn every_method_that_is_served_is_listed_and_no_other() {
        let sets = [
            proto::FILE_DESCRIPTOR_SET,
            tonic_health::pb::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
        ];
        let mut served = BTreeSet::new();
        for set in sets {
            for file in FileDescriptorSet::decode(set).unwrap().file {
                for service in &file.service {
                    let name = format!("{}.{}", file.package(), service.name());
                    if SERVICES.contains(&name.as_str()) {
                        let paths = service.method.iter().map(|m| format!("/{name}/{}", m.name()));
                        served.extend(paths);
                    }
                }
            }
        }
        let listed: BTreeSet<String> = PATHS.iter().map(|path| (*path).to_owned()).collect();
        assert_eq!(listed, served);
        assert_eq!(PATHS.len(), served.len(), "one is listed twice");
    }

    #[test]
    fn a_path_leads_to_its_names_and_a_strange_one_to_other() {
        for (at, path) in PATHS.iter().enumerate() {
            assert_eq!(index(path), at);
            let (service, method) = names(at);
            assert_eq!(format!("/{service}/{method}"), *path);
        }
        for strange in ["", "/", "/google.bytestream.ByteStream", "/a/b", "/a/\u{e9}\""] {
            assert_eq!(names(index(strange)), ("other", "other"));
        }
    }
}
