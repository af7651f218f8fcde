//! Actions that would harm the store, the host or each other. The sandbox has tests of its own of
//! each barrier; these are a few of them, through the protocol.

use crate::shared::{can_execute, eventually, own, shared};
use bytes::Bytes;
use ringforge_tests::{
    action::{Folder, Job},
    client::digest,
    noise,
};
use std::{fs, os::unix::fs::MetadataExt};

#[tokio::test]
async fn an_input_cannot_be_changed() {
    if !can_execute() {
        return;
    }
    let node = shared().await;
    // One that is stored with others, and one with a file of its own.
    for size in [100, 300_000] {
        let blob = noise("unchangeable", size);
        let inputs = || Folder::new().file("i", blob.clone()).executable("x", blob.clone());
        let script = "set +e; for f in i x; do \
                      echo bad > $f; echo bad >> $f; truncate -s 0 $f; chmod 777 $f; chmod u+w $f; \
                      dd if=/dev/zero of=$f conv=notrunc bs=1 count=1; touch -d 2001-01-01 $f; \
                      ln $f hard; echo bad > hard; cp --attributes-only /bin/sh $f; \
                      exec 9< $f; echo bad > /proc/self/fd/9; \
                      perl -e 'truncate(shift, 1); open(F, \"+<\", \"i\") and print F \"bad\"' $f; \
                      done; stat -c '%a %s' i x; true";
        let printed = node.printed(&Job::shell(script).with(inputs())).await;
        assert_eq!(printed, format!("444 {size}\n555 {size}\n"));
        assert!(node.read(&digest(&blob)).await.unwrap() == blob, "{size}");
        let job = Job::shell("cmp i x; sha256sum < i").with(inputs());
        assert!(node.printed(&job).await.starts_with(&digest(&blob).hash), "{size}");
    }
}

#[tokio::test]
async fn an_input_that_is_replaced_is_replaced_for_this_action_only() {
    if !can_execute() {
        return;
    }
    let node = shared().await;
    let blob = noise("replaced", 200_000);
    let inputs = || Folder::new().file("i", blob.clone());
    let job = Job::shell("rm -f i; echo mine > i; cat i").with(inputs()).outputs(&["i"]);
    let result = node.result(&job).await;
    assert_eq!(result.output_files[0].digest, Some(digest(b"mine\n")));
    let printed = node.printed(&Job::shell("sha256sum < i").with(inputs())).await;
    assert!(printed.starts_with(&digest(&blob).hash));
    assert!(node.read(&digest(&blob)).await.unwrap() == blob);
}

#[tokio::test]
async fn an_output_cannot_be_changed_after_its_action() {
    if !can_execute() {
        return;
    }
    let node = shared().await;
    // A daemon that survived would change the file later.
    let script = "head -c 300000 /dev/zero > o; \
                  (setsid sh -c 'exec 9<> o; while :; do echo bad >&9; sleep 0.01; done' &) ; \
                  (setsid sh -c 'sleep 0.3; echo bad > o' &) ; sleep 0.1; true";
    let result = node.result(&Job::shell(script).outputs(&["o"])).await;
    let output = result.output_files[0].digest.clone().unwrap();
    for _ in 0..2 {
        let blob = node.read(&output).await.unwrap();
        assert_eq!(digest(&blob), output);
        tokio::time::sleep(std::time::Duration::from_millis(400)).await;
    }
}

#[tokio::test]
async fn empty_inputs_are_files_of_their_own() {
    if !can_execute() {
        return;
    }
    let node = shared().await;
    let inputs = || Folder::new().file("a", Bytes::new()).file("b", Bytes::new());
    let printed = node.printed(&Job::shell("stat -c '%i %h' a b").with(inputs())).await;
    let lines: Vec<&str> = printed.lines().collect();
    assert_ne!(lines[0], lines[1], "one inode");
    assert!(lines.iter().all(|line| line.ends_with(" 1")), "{printed}");
    let job = Job::shell("chmod +w a && echo bad > a; true").with(inputs());
    node.result(&job).await;
    assert_eq!(node.printed(&Job::shell("cat a b").with(inputs())).await, "");
}

#[tokio::test]
async fn no_process_outlives_its_action() {
    if !can_execute() {
        return;
    }
    let node = shared().await;
    let seconds = format!("8{}", std::process::id());
    let script = format!(
        "(setsid sleep {seconds} &) ; nohup sleep {seconds} > /dev/null 2>&1 & \
         (trap '' TERM HUP INT; exec setsid sleep {seconds}) & sleep 0.1; echo end"
    );
    assert_eq!(node.printed(&Job::shell(&script)).await, "end\n");
    let alive = fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|process| fs::read(process.path().join("cmdline")).ok())
        .any(|line| line.starts_with(format!("sleep\0{seconds}\0").as_bytes()));
    assert!(!alive);
}

#[tokio::test]
async fn the_host_is_invisible() {
    if !can_execute() {
        return;
    }
    let node = own(&[]).await;
    let store = node.running.directory.path().join("store").display().to_string();
    let pid = std::process::id();
    let uid = fs::metadata("/proc/self").unwrap().uid();
    let script = format!(
        "set +e; for p in /root /home /etc/shadow /etc/passwd- {store} /var/lib /sys/kernel \
         /proc/{pid}/environ /dev/sda /dev/mem /run/docker.sock; do \
         ls $p > /dev/null 2>&1 && echo visible $p; done; \
         touch /usr/x /etc/x /x /bin/x 2> /dev/null && echo written; \
         test \"$(id -u)\" = {uid} && echo same user; true"
    );
    assert_eq!(node.printed(&Job::shell(&script)).await, "");
    let processes = node.printed(&Job::shell("ls /proc | grep -c '^[0-9]*$'")).await;
    assert!(processes.trim().parse::<u32>().unwrap() < 10, "{processes}");
}

#[tokio::test]
async fn there_is_no_network_but_a_loopback_of_its_own() {
    if !can_execute() {
        return;
    }
    let node = shared().await;
    let port = node.running.node.port();
    let interfaces = node.printed(&Job::shell("tail -n +3 /proc/net/dev | cut -d: -f1")).await;
    assert_eq!(interfaces.trim(), "lo");
    let script = format!(
        "perl -MIO::Socket::INET -e 'print IO::Socket::INET->new(\"127.0.0.1:{port}\") ? \
         \"connected\" : \"refused\"'"
    );
    assert_eq!(node.printed(&Job::shell(&script)).await, "refused");
    let script = "perl -MIO::Socket::INET -e '$l = IO::Socket::INET->new(Listen => 1, \
                  LocalAddr => \"127.0.0.1\") or die; $p = $l->sockport; \
                  IO::Socket::INET->new(\"127.0.0.1:$p\") or die; print \"connected\"'";
    assert_eq!(node.printed(&Job::shell(script)).await, "connected");
}

#[tokio::test]
async fn scratch_space_is_empty_for_each_action() {
    if !can_execute() {
        return;
    }
    let node = shared().await;
    let script = "ls -A /tmp /var/tmp /dev/shm | grep -v '^/' | grep .; \
                  echo x > /tmp/left; echo x > /var/tmp/left; echo x > /dev/shm/left; echo done";
    for _ in 0..4 {
        let job = Job::shell(&script.replace("grep .;", "grep . || true;"));
        assert_eq!(node.printed(&job).await, "done\n");
    }
    assert!(!std::path::Path::new("/tmp/left").exists());
}

#[tokio::test]
async fn actions_do_not_see_each_other() {
    if !can_execute() {
        return;
    }
    let node = own(&[("EXECUTION__SLOTS", "2")]).await;
    let secret = Job::shell("echo secret > f; echo secret > /tmp/f; sleep 1000");
    node.put(secret.blobs()).await;
    let mut running = node.begin(secret.request()).await.unwrap();
    running.until(proto::reapi::execution_stage::Value::Executing).await;
    let script = "ls /exec /exec/.. /tmp; grep -l 1000 /proc/[0-9]*/cmdline | wc -l; \
                  kill -9 -1 2> /dev/null; true";
    let printed = node.run(&Job::shell(script)).await;
    let stdout = printed.result.unwrap().stdout_digest.unwrap();
    let printed = node.read(&stdout).await.unwrap();
    let printed = String::from_utf8(printed.into()).unwrap();
    assert!(!printed.contains("\nf\n"), "{printed}");
    // The other one lives.
    let name = running.last.name.clone();
    let request = proto::longrunning::GetOperationRequest { name: name.clone() };
    let seen = node.operations.clone().get_operation(request).await.unwrap().into_inner();
    assert!(!seen.done);
    let request = proto::longrunning::CancelOperationRequest { name };
    node.operations.clone().cancel_operation(request).await.unwrap();
    running.end().await.unwrap();
}

#[tokio::test]
async fn a_fork_bomb_ends_with_its_timeout() {
    if !can_execute() {
        return;
    }
    let node = own(&[("SANDBOX__PROCESSES_MAX", "100")]).await;
    let job = Job::shell("set +e; f() { f | f & }; f 2> /dev/null; sleep 1000")
        .timeout(std::time::Duration::from_millis(700));
    let status = node.run(&job).await.status.unwrap();
    assert_eq!(status.code, tonic::Code::DeadlineExceeded as i32, "{status:?}");
    assert_eq!(node.printed(&Job::shell("echo alive")).await, "alive\n");
}

#[tokio::test]
async fn scratch_space_has_a_bound() {
    if !can_execute() {
        return;
    }
    let node = own(&[("SANDBOX__TMP_BYTES_MAX", "1MiB")]).await;
    let job = Job::shell("head -c 5000000 /dev/zero > /tmp/f");
    assert_ne!(node.run(&job).await.result.unwrap().exit_code, 0);
    assert_eq!(node.printed(&Job::shell("echo alive")).await, "alive\n");
}

#[tokio::test]
async fn nothing_of_an_action_stays_in_its_directory() {
    if !can_execute() {
        return;
    }
    let node = own(&[]).await;
    for script in ["mkdir -p a/b; echo > a/b/c; exit 0", "echo > f; exit 1", "kill -9 $$"] {
        node.run(&Job::shell(script).outputs(&["a"])).await;
    }
    let job = Job::shell("echo > f; sleep 1000").timeout(std::time::Duration::from_millis(200));
    node.run(&job).await;
    let exec = node.running.directory.path().join("store/exec");
    eventually("nothing is left", async || fs::read_dir(&exec).unwrap().next().is_none()).await;
}
