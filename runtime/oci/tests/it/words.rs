//! The words by which engines tell one failure from another, and take this runtime for what it is.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use serde_json::json;

use crate::bundle::{Bundle, text};

#[test]
fn the_version_is_told_as_engines_parse_it() {
    let Some(b) = Bundle::new("version", "true") else { return };
    for flag in ["--version", "-v"] {
        let out = text(&b.oci(&[flag]).stdout);
        let lines: Vec<&str> = out.lines().collect();
        let version = concat!("lapstrake-oci version ", env!("CARGO_PKG_VERSION"));
        assert_eq!(lines, [version, "spec: 1.3.0"], "{flag}");
    }
}

#[test]
fn a_switch_may_have_a_value_as_in_the_settings_of_engines() {
    let Some(b) = Bundle::new("switch", "echo ran") else { return };
    for (flags, want) in
        [(&["--debug=true"][..], true), (&["--debug"], true), (&["--debug=false"], false)]
    {
        let out = b.oci(&[flags, &["run", &b.id]].concat());
        assert_eq!(text(&out.stdout), "ran\n", "{flags:?}: {out:?}");
        assert_eq!(text(&out.stderr).contains("level=debug"), want, "{flags:?}: {out:?}");
    }
}

#[test]
fn nobody_takes_it_for_a_runtime_that_checkpoints() {
    let Some(b) = Bundle::new("checkpoint", "true") else { return };
    for verb in ["checkpoint", "restore"] {
        for args in [&[verb, "--help"][..], &[verb, "--image-path", "x", &b.id]] {
            let out = b.oci(args);
            assert_eq!(out.status.code(), Some(1), "{args:?}: {out:?}");
            assert!(text(&out.stderr).contains("not implemented"), "{out:?}");
        }
    }
}

#[test]
fn a_program_that_cannot_run_is_told_in_the_words_that_exit_codes_are_made_of() {
    let Some(b) = Bundle::new("cannot-run", "true") else { return };
    let script = |name: &str, text: &str, mode: u32| {
        let path = b.dir.path().join("rootfs").join(name);
        fs::write(&path, text).expect("write");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("chmod");
    };
    script("no-interpreter", "#!/no/such/sh\n", 0o755);
    script("closed", "#!/bin/sh\n", 0o644);
    script("strange", "\u{1}\u{2}", 0o755);
    for (program, want) in [
        ("/no-interpreter", "exec /no-interpreter: no such file or directory"),
        ("/missing", r#"exec: "/missing": stat /missing: no such file or directory"#),
        ("missing", r#"exec: "missing": executable file not found in $PATH"#),
        ("/closed", r#"exec: "/closed": permission denied"#),
        ("/bin", r#"exec: "/bin": is a directory"#),
        ("/strange", "exec format error"),
    ] {
        b.change(|c| c["process"]["args"] = json!([program]));
        let out = b.oci(&["run", &b.id]);
        assert!(text(&out.stderr).contains(want), "{program}: {out:?}");
        assert_eq!(out.status.code(), Some(1), "{program}");
        // What is seen without running it, is seen before there is a container.
        let seen = !["/no-interpreter", "/strange"].contains(&program);
        assert_eq!(b.oci_to_file(&["create", &b.id]).0, !seen, "{program}");
        assert!(b.oci(&["delete", "-f", &b.id]).status.success());
    }
}
