//! Compiles the CUDA kernels where the feature asks for them, each file to one binary for several GPUs.

use std::path::{Path, PathBuf};
use std::process::Command;

const KERNELS: &str = "src/ops/cuda";
/// Machine code for these, and PTX of the last for whatever comes after.
const ARCHITECTURES: [u32; 2] = [80, 90];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    println!("cargo::rerun-if-changed={KERNELS}");
    println!("cargo::rerun-if-env-changed=NVCC");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let files =
        std::fs::read_dir(KERNELS).unwrap_or_else(|error| fail(&format!("{KERNELS}: {error}")));
    for file in files.flatten() {
        let path = file.path();
        if path.extension().is_some_and(|extension| extension == "cu") {
            compile(&path, &out);
        }
    }
}

fn compile(kernel: &Path, out: &Path) {
    let nvcc = std::env::var_os("NVCC").unwrap_or_else(|| "nvcc".into());
    let target = out.join(kernel.with_extension("fatbin").file_name().expect("a file has a name"));
    let mut command = Command::new(&nvcc);
    command.args(["-fatbin", "-std=c++17", "-O3", "--expt-relaxed-constexpr"]);
    for architecture in ARCHITECTURES {
        command.arg(format!("-gencode=arch=compute_{architecture},code=sm_{architecture}"));
    }
    let last = ARCHITECTURES[ARCHITECTURES.len() - 1];
    command.arg(format!("-gencode=arch=compute_{last},code=compute_{last}"));
    command.arg("-o").arg(&target).arg(kernel);
    match command.output() {
        Ok(output) if output.status.success() => {}
        Ok(output) => fail(&format!(
            "{nvcc:?} cannot compile {}:\n{}{}",
            kernel.display(),
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        )),
        Err(error) => fail(&format!(
            "the feature `cuda` needs the CUDA toolkit, and {nvcc:?} cannot be run: {error}.\n\
             Put nvcc on PATH or name it in NVCC; `.ci/cuda` fetches a toolkit and builds with it."
        )),
    }
}

fn fail(message: &str) -> ! {
    eprintln!("{message}");
    std::process::exit(1)
}
