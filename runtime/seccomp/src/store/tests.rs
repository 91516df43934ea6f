//! The store compiles once, mends itself and trusts nobody else's directory.

use super::*;
use std::os::unix::fs::PermissionsExt;
use std::time::Instant;
use tempfile::{TempDir, tempdir};

const PROFILE: &str = r#"{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
    {"names": ["read", "exit_group"], "action": "SCMP_ACT_ALLOW"},
    {"names": ["mount"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}}]}"#;

fn compiler() -> (TempDir, Compiler) {
    let dir = tempdir().unwrap();
    let compiler = Compiler::open(dir.path().join("seccomp")).unwrap();
    (dir, compiler)
}

fn inode(path: &Path) -> u64 {
    fs::metadata(path).unwrap().ino()
}

#[test]
fn the_same_question_has_the_same_file_also_after_a_restart() {
    let (dir, compiler) = compiler();
    let begun = Instant::now();
    let first = compiler.program(Profile::RuntimeDefault, &["CHOWN", "KILL"]).unwrap();
    let (cold, begun) = (begun.elapsed(), Instant::now());
    let made = inode(&first);
    // CHOWN and KILL open nothing in the profile.
    assert_eq!(compiler.program(Profile::RuntimeDefault, &["KILL"]).unwrap(), first);
    let (warm, begun) = (begun.elapsed(), Instant::now());
    let again = Compiler::open(dir.path().join("seccomp")).unwrap();
    assert_eq!(again.program(Profile::RuntimeDefault, &[]).unwrap(), first);
    println!(
        "compiled in {cold:?}, remembered in {warm:?}, found on disk in {:?}",
        begun.elapsed()
    );
    assert_eq!(inode(&first), made, "it was compiled again");
    assert_ne!(compiler.program(Profile::RuntimeDefault, &["SYS_ADMIN"]).unwrap(), first);
}

#[test]
fn a_program_is_named_by_its_content_and_is_an_array_of_instructions() {
    let (_dir, compiler) = compiler();
    let path = compiler.program(Profile::RuntimeDefault, &[]).unwrap();
    let code = fs::read(&path).unwrap();
    assert_eq!(code.len() % INSTRUCTION, 0);
    let name = format!("{}.bpf", hex(&Sha256::digest(&code)));
    assert_eq!(path.file_name().unwrap().to_str().unwrap(), name);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn a_damaged_or_missing_program_is_made_again() {
    let (dir, compiler) = compiler();
    let path = compiler.program(Profile::RuntimeDefault, &[]).unwrap();
    let code = fs::read(&path).unwrap();
    let restart = || Compiler::open(dir.path().join("seccomp")).unwrap();
    let mut flipped = code.clone();
    flipped[80] ^= 1;
    for damaged in [&code[..code.len() - 3], &code[..code.len() - 8], &[], &flipped] {
        fs::write(&path, damaged).unwrap();
        assert_eq!(restart().program(Profile::RuntimeDefault, &[]).unwrap(), path);
        assert_eq!(fs::read(&path).unwrap(), code, "after a restart");
    }
    fs::write(&path, &code[..80]).unwrap();
    compiler.program(Profile::RuntimeDefault, &[]).unwrap();
    assert_eq!(fs::read(&path).unwrap(), code, "truncated under a running compiler");
    fs::remove_file(&path).unwrap();
    compiler.program(Profile::RuntimeDefault, &[]).unwrap();
    assert_eq!(fs::read(&path).unwrap(), code, "removed under a running compiler");
}

#[test]
fn a_link_that_leaves_the_directory_is_not_followed() {
    let (dir, compiler) = compiler();
    let path = compiler.program(Profile::RuntimeDefault, &[]).unwrap();
    fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
    let kept = dir.path().join("seccomp");
    let links = fs::read_dir(&kept).unwrap().map(|entry| entry.unwrap().path());
    let link = links.into_iter().find(|path| path.is_symlink()).unwrap();
    fs::remove_file(&link).unwrap();
    symlink(Path::new("..").join(path.file_name().unwrap()), &link).unwrap();
    let found = Compiler::open(kept).unwrap().program(Profile::RuntimeDefault, &[]).unwrap();
    assert_eq!(found, path);
}

#[test]
fn a_changed_profile_file_and_other_capabilities_are_other_programs() {
    let (dir, compiler) = compiler();
    let file = dir.path().join("profile.json");
    fs::write(&file, PROFILE).unwrap();
    let first = compiler.program(Profile::File(&file), &["CHOWN"]).unwrap();
    let admin = compiler.program(Profile::File(&file), &["SYS_ADMIN", "CHOWN"]).unwrap();
    assert_ne!(first, admin);
    assert_eq!(compiler.program(Profile::File(&file), &["KILL"]).unwrap(), first, "same content");
    fs::write(&file, PROFILE.replace("read", "write")).unwrap();
    assert_ne!(compiler.program(Profile::File(&file), &["CHOWN"]).unwrap(), first);
    fs::write(&file, "no profile").unwrap();
    let error = compiler.program(Profile::File(&file), &["CHOWN"]).unwrap_err().to_string();
    assert!(error.contains(file.to_str().unwrap()), "{error}");
}

#[test]
fn a_directory_that_others_can_write_is_refused() {
    let dir = tempdir().unwrap();
    let open = dir.path().join("open");
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
    assert!(matches!(Compiler::open(open), Err(Error::Exposed { .. })));
    symlink(dir.path(), dir.path().join("link")).unwrap();
    assert!(matches!(Compiler::open(dir.path().join("link")), Err(Error::Exposed { .. })));
    let nowhere = dir.path().join("absent").join("seccomp");
    assert!(matches!(Compiler::open(nowhere), Err(Error::Store { .. })));
    let made = dir.path().join("made");
    Compiler::open(made.clone()).unwrap();
    assert_eq!(fs::metadata(made).unwrap().permissions().mode() & 0o777, 0o700);
}

#[test]
fn many_pods_at_once_share_one_program() {
    let (dir, compiler) = compiler();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| compiler.program(Profile::RuntimeDefault, &[]).unwrap()))
            .collect();
        let paths: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        assert!(paths.windows(2).all(|two| two[0] == two[1]));
    });
    let files = fs::read_dir(dir.path().join("seccomp")).unwrap().count();
    assert_eq!(files, 2, "one program and one link, nothing temporary");
}

#[test]
fn an_oci_spec_gives_the_same_program_from_the_store_as_without() {
    let (_dir, compiler) = compiler();
    let spec: LinuxSeccomp = serde_json::from_str(
        r#"{"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_LOG"],
            "architectures": ["SCMP_ARCH_X86_64"], "syscalls": [
            {"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}]}"#,
    )
    .unwrap();
    let direct = crate::compile(&spec).unwrap();
    assert_eq!(direct.flags, 2 | 8);
    let (first, path) = compiler.spec(&spec).unwrap();
    assert_eq!((&first, fs::read(&path).unwrap()), (&direct, direct.code.clone()));
    assert_eq!(compiler.spec(&spec).unwrap(), (first, path));
}

#[test]
fn a_text_is_known_once_told_and_as_long_as_its_program_is_whole() {
    let (_dir, compiler) = compiler();
    let text = r#"{"defaultAction": "SCMP_ACT_ALLOW"}"#;
    assert_eq!(compiler.known(text), None);
    let (program, path) = compiler.spec(&serde_json::from_str(text).unwrap()).unwrap();
    compiler.know(text, &path).unwrap();
    assert_eq!(compiler.known(text), Some((program.code, path.clone())));
    assert_eq!(compiler.known(&format!("{text} ")), None, "another text");
    fs::write(&path, "torn").unwrap();
    assert_eq!(compiler.known(text), None, "a program that is not what its name says");
}
