//! The lease directory against crashes, reboots and rubbish.

use std::os::unix::fs::MetadataExt;

use tempfile::TempDir;

use super::*;

fn new(id: &str, address: &str) -> NewLease {
    NewLease {
        sandbox_id: id.into(),
        owner: format!("default/{id}"),
        host_link: format!("link-{id}"),
        addresses: vec![address.parse().unwrap()],
        gateways: vec!["10.0.0.1".parse().unwrap()],
        ports: vec![],
    }
}

fn ids(leases: &Leases) -> Vec<&str> {
    leases.iter().map(|lease| lease.sandbox_id.as_str()).collect()
}

#[test]
fn leases_and_the_place_of_the_last_choice_survive_the_process() {
    let dir = TempDir::new().unwrap();
    let mut leases = Leases::open(dir.path()).unwrap();
    leases.add(new("a", "10.0.0.2/24")).unwrap();
    leases.add(new("b", "10.0.0.3/24")).unwrap();
    leases.remove("b").unwrap();
    leases.remove("b").unwrap();
    leases.set_pod_cidr(vec!["10.0.0.0/24".parse().unwrap()]).unwrap();
    drop(leases);
    let leases = Leases::open(dir.path()).unwrap();
    assert_eq!(ids(&leases), ["a"]);
    assert_eq!(leases.taken().iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.0.0.2"]);
    assert_eq!(leases.cursor(false), Some("10.0.0.3".parse().unwrap()), "b was leased last");
    assert_eq!(leases.cursor(true), None);
    assert_eq!(leases.pod_cidr().len(), 1);
}

#[test]
fn a_lease_of_an_earlier_boot_is_dropped() {
    let dir = TempDir::new().unwrap();
    let mut leases = Leases::open(dir.path()).unwrap();
    leases.boot_id = "another-boot".into();
    leases.add(new("old", "10.0.0.2/24")).unwrap();
    drop(leases);
    assert!(ids(&Leases::open(dir.path()).unwrap()).is_empty());
    assert!(!dir.path().join("old.lease").exists());
}

#[test]
fn a_crash_leaves_no_trace_and_rubbish_is_put_aside() {
    let dir = TempDir::new().unwrap();
    let mut leases = Leases::open(dir.path()).unwrap();
    leases.add(new("good", "10.0.0.2/24")).unwrap();
    drop(leases);
    for (name, content) in [
        ("half.lease.tmp", "{\"sandbox"),
        ("bad.lease", "{\"sandbox"),
        ("empty.lease", ""),
        ("memory", "\0\0\0"),
    ] {
        fs::write(dir.path().join(name), content).unwrap();
    }
    let leases = Leases::open(dir.path()).unwrap();
    assert_eq!(ids(&leases), ["good"]);
    let mut names: Vec<_> = fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort_unstable();
    assert_eq!(names, ["bad.bad", "empty.bad", "good.lease", "lock", "memory"]);
}

#[test]
fn a_lease_of_a_newer_version_stops_rather_than_being_lost() {
    let dir = TempDir::new().unwrap();
    let mut leases = Leases::open(dir.path()).unwrap();
    leases.add(new("a", "10.0.0.2/24")).unwrap();
    drop(leases);
    let path = dir.path().join("a.lease");
    let newer = fs::read_to_string(&path).unwrap().replace("\"version\":1", "\"version\":2");
    fs::write(&path, newer).unwrap();
    let error = Leases::open(dir.path()).err().unwrap().to_string();
    assert!(error.contains("version 2 is newer than 1"), "{error}");
    assert!(path.exists());
}

#[test]
fn the_memory_is_one_page_whatever_is_in_it() {
    let dir = TempDir::new().unwrap();
    let mut leases = Leases::open(dir.path()).unwrap();
    for n in 2..50 {
        leases.add(new(&format!("p{n}"), &format!("10.0.0.{n}/24"))).unwrap();
        assert_eq!(fs::metadata(dir.path().join("memory")).unwrap().size(), 4096);
    }
}

#[test]
fn identifiers_cannot_leave_the_directory() {
    for good in ["a", "0f3c-eth0", "a.b_c-d"] {
        assert!(is_id(good), "{good}");
    }
    for bad in ["", ".", "..", ".hidden", "a/b", "a\0", "ä", &"x".repeat(201)] {
        assert!(!is_id(bad), "{bad}");
    }
}
