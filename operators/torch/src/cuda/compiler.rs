//! The run-time compiler of CUDA.

use std::ffi::{CString, c_char};
use std::ptr;

use cudarc::nvrtc::sys::{self, nvrtcResult};
use engine_core::error::ModelError;

/// Compiles to machine code of a device of some capability. `macros` are options of the form `-DNAME=VALUE`.
///
/// # Errors
/// When the compiler is missing or refuses, with its first message.
#[expect(unsafe_code, reason = "calls the run-time compiler")]
pub(crate) fn compile(
    source: &str,
    macros: &[String],
    [major, minor]: [i32; 2],
) -> Result<Vec<u8>, ModelError> {
    crate::device::open_compiler();
    let text = CString::new(source).expect("the source has no zero");
    let target = [
        format!("--gpu-architecture=sm_{major}{minor}"),
        "--std=c++17".to_owned(),
    ];
    let options: Vec<CString> = (target.iter().chain(macros))
        .map(|option| CString::new(option.as_str()).expect("options have no zero"))
        .collect();
    let pointers: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();
    let mut program = ptr::null_mut();
    // SAFETY: texts end with a zero and outlive the calls; buffers have the sizes that the library gives.
    unsafe {
        let made = sys::nvrtcCreateProgram(
            &raw mut program,
            text.as_ptr(),
            c"metis_flow.cu".as_ptr(),
            0,
            ptr::null(),
            ptr::null(),
        );
        check(made, "reading the kernels")?;
        let compiled = sys::nvrtcCompileProgram(program, pointers.len() as i32, pointers.as_ptr());
        if compiled != nvrtcResult::NVRTC_SUCCESS {
            let mut size = 0;
            check(
                sys::nvrtcGetProgramLogSize(program, &raw mut size),
                "reading the log",
            )?;
            let mut log = vec![0_u8; size];
            check(
                sys::nvrtcGetProgramLog(program, log.as_mut_ptr().cast()),
                "reading the log",
            )?;
            let log = String::from_utf8_lossy(&log);
            let first = log.lines().next().unwrap_or("no message").to_owned();
            sys::nvrtcDestroyProgram(&raw mut program);
            return Err(ModelError::Backend(format!("compiling kernels: {first}")));
        }
        let mut size = 0;
        check(
            sys::nvrtcGetCUBINSize(program, &raw mut size),
            "reading machine code",
        )?;
        let mut image = vec![0_u8; size];
        check(
            sys::nvrtcGetCUBIN(program, image.as_mut_ptr().cast()),
            "reading machine code",
        )?;
        sys::nvrtcDestroyProgram(&raw mut program);
        Ok(image)
    }
}

fn check(status: nvrtcResult, what: &str) -> Result<(), ModelError> {
    if status == nvrtcResult::NVRTC_SUCCESS {
        Ok(())
    } else {
        Err(ModelError::Backend(format!("NVRTC: {what}: {status:?}")))
    }
}
