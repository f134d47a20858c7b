//! CUDA kernels compute what they say, checked without a GPU: each is compiled for this machine's processor
//! with `src/ops/cuda/check/emulated.h` in the place of a GPU's threads, and compared with a plain computation.

use std::path::Path;
use std::process::Command;

#[test]
fn kernels_agree_with_a_plain_computation_where_a_gpu_is_emulated() {
    let checks = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/ops/cuda/check");
    if Command::new("c++").arg("--version").output().is_err() {
        eprintln!("skipped: there is no C++ compiler");
        return;
    }
    let folder = tempfile::TempDir::new().unwrap();
    let names = ["norm", "rope", "router", "experts", "attend", "mla_decode", "mla_prefill"];
    std::thread::scope(|scope| {
        for name in names {
            let (program, source) = (folder.path().join(name), checks.join(format!("{name}.cpp")));
            scope.spawn(move || {
                let built = Command::new("c++")
                    .args(["-std=c++17", "-O2", "-Wno-unknown-pragmas", "-o"])
                    .args([&program, &source])
                    .output()
                    .unwrap();
                assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
                let ran = Command::new(&program).output().unwrap();
                assert!(ran.status.success(), "{name}: {}", String::from_utf8_lossy(&ran.stderr));
            });
        }
    });
}
