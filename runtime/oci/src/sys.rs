//! libseccomp by dlopen: the command line runs without it where no profile asks for it.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::AsRawFd;

use crate::error::Error;
use crate::seccomp::Comparison;

#[repr(C)]
#[derive(Clone, Copy)]
struct ArgCmp {
    arg: c_uint,
    op: c_uint,
    a: u64,
    b: u64,
}

type Init = unsafe extern "C" fn(u32) -> *mut c_void;
type Release = unsafe extern "C" fn(*mut c_void);
type ResolveArch = unsafe extern "C" fn(*const c_char) -> u32;
type ArchAdd = unsafe extern "C" fn(*mut c_void, u32) -> c_int;
type ResolveSyscall = unsafe extern "C" fn(*const c_char) -> c_int;
type RuleAdd = unsafe extern "C" fn(*mut c_void, u32, c_int, c_uint, *const ArgCmp) -> c_int;
type Export = unsafe extern "C" fn(*const c_void, c_int) -> c_int;

/// The functions used, from a library that stays loaded.
pub(crate) struct Library {
    init: Init,
    release: Release,
    resolve_arch: ResolveArch,
    arch_add: ArchAdd,
    resolve_syscall: ResolveSyscall,
    rule_add: RuleAdd,
    export: Export,
}

/// A filter in the making.
pub(crate) struct Compiler {
    library: Library,
    context: *mut c_void,
}

/// What libseccomp answers for a name that this kernel interface never had.
const NO_SYSCALL: c_int = -1;

pub(crate) fn seccomp_library() -> Result<Library, Error> {
    // SAFETY: the name is a C string; loading runs only the initialisers of libseccomp.
    let handle = unsafe { libc::dlopen(c"libseccomp.so.2".as_ptr(), libc::RTLD_NOW) };
    if handle.is_null() {
        return Err(Error::Seccomp(
            "libseccomp.so.2 is not installed (Debian: libseccomp2)".into(),
        ));
    }
    let symbol = |name: &CStr| {
        // SAFETY: the handle is valid and the name a C string.
        let found = unsafe { libc::dlsym(handle, name.as_ptr()) };
        if found.is_null() {
            Err(Error::Seccomp(format!("libseccomp has no {name:?}")))
        } else {
            Ok(found)
        }
    };
    // SAFETY: each type is the documented signature of the function in seccomp.h of libseccomp 2.x.
    unsafe {
        Ok(Library {
            init: std::mem::transmute::<*mut c_void, Init>(symbol(c"seccomp_init")?),
            release: std::mem::transmute::<*mut c_void, Release>(symbol(c"seccomp_release")?),
            resolve_arch: std::mem::transmute::<*mut c_void, ResolveArch>(symbol(
                c"seccomp_arch_resolve_name",
            )?),
            arch_add: std::mem::transmute::<*mut c_void, ArchAdd>(symbol(c"seccomp_arch_add")?),
            resolve_syscall: std::mem::transmute::<*mut c_void, ResolveSyscall>(symbol(
                c"seccomp_syscall_resolve_name",
            )?),
            rule_add: std::mem::transmute::<*mut c_void, RuleAdd>(symbol(
                c"seccomp_rule_add_array",
            )?),
            export: std::mem::transmute::<*mut c_void, Export>(symbol(c"seccomp_export_bpf")?),
        })
    }
}

impl Compiler {
    pub(crate) fn new(default_action: u32) -> Result<Self, Error> {
        let library = seccomp_library()?;
        // SAFETY: seccomp_init has no preconditions and answers null on failure.
        let context = unsafe { (library.init)(default_action) };
        if context.is_null() {
            return Err(Error::Seccomp(format!(
                "libseccomp refuses the default action {default_action:#x}"
            )));
        }
        Ok(Self { library, context })
    }

    pub(crate) fn add_architecture(&mut self, name: &str) -> Result<(), Error> {
        let c_name = c_string(name)?;
        // SAFETY: the name is a C string and the context is live.
        let result = unsafe {
            match (self.library.resolve_arch)(c_name.as_ptr()) {
                0 => return Err(Error::Seccomp(format!("unknown architecture {name:?}"))),
                token => (self.library.arch_add)(self.context, token),
            }
        };
        match result {
            0 | -17 /* EEXIST: the native one is there already */ => Ok(()),
            e => Err(Error::Seccomp(format!("architecture {name:?}: {}", std::io::Error::from_raw_os_error(-e)))),
        }
    }

    /// A system call that libseccomp does not know cannot be made by name either: the default action covers it.
    pub(crate) fn add_rule(
        &mut self,
        action: u32,
        name: &str,
        comparisons: &[Comparison],
    ) -> Result<(), Error> {
        let c_name = c_string(name)?;
        let args: Vec<ArgCmp> = comparisons
            .iter()
            .map(|c| ArgCmp { arg: c.index, op: c.operator, a: c.a, b: c.b })
            .collect();
        // SAFETY: the name is a C string, the context is live, and `args` is an array of the length passed.
        let result = unsafe {
            match (self.library.resolve_syscall)(c_name.as_ptr()) {
                NO_SYSCALL => return Ok(()),
                number => (self.library.rule_add)(
                    self.context,
                    action,
                    number,
                    args.len() as c_uint,
                    args.as_ptr(),
                ),
            }
        };
        match result {
            0 => Ok(()),
            e => Err(Error::Seccomp(format!(
                "rule for {name:?}: {}",
                std::io::Error::from_raw_os_error(-e)
            ))),
        }
    }

    /// The program as an array of `struct sock_filter`.
    pub(crate) fn export(&self) -> Result<Vec<u8>, Error> {
        let memfd = rustix::fs::memfd_create("seccomp", rustix::fs::MemfdFlags::CLOEXEC);
        let mut file = File::from(memfd.map_err(Error::system("memfd_create"))?);
        // SAFETY: the context is live; the descriptor is open for writing.
        let result = unsafe { (self.library.export)(self.context, file.as_raw_fd()) };
        if result != 0 {
            let why = std::io::Error::from_raw_os_error(-result);
            return Err(Error::Seccomp(format!("export: {why}")));
        }
        let mut program = Vec::new();
        file.rewind()
            .and_then(|()| file.read_to_end(&mut program))
            .map_err(Error::system("read the program"))?;
        Ok(program)
    }
}

impl Drop for Compiler {
    fn drop(&mut self) {
        // SAFETY: the context is live and not used after this.
        unsafe { (self.library.release)(self.context) };
    }
}

fn c_string(text: &str) -> Result<CString, Error> {
    CString::new(text).map_err(|_| Error::Seccomp(format!("{text:?} has a zero byte")))
}
