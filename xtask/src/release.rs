//! The binary that is installed, and measured.

use std::fs;

use crate::Result;
use crate::command::{cargo, run};

/// The level of the x86-64 psABI (*Micro-Architecture Levels*) that most processors have since 2015: with it queries take a
/// twelfth less time, as much as the compiler makes of vectors of 256 bits (ADR 0039).
const LEVEL: &str = "x86-64-v3";
/// What tells a processor of it, in the words of `/proc/cpuinfo`. The level's other features came before AVX2, or with it.
const FEATURES: [&str; 4] = ["avx2", "bmi2", "fma", "movbe"];

/// `release [--portable]`: `target/release/polder`, for processors like this one's, or for all.
pub(crate) fn command(args: &[&str]) -> Result {
    match args {
        [] => build(),
        ["--portable"] => build_for(None),
        other => Err(format!("release: unknown argument {}", other.join(" "))),
    }
}

pub(crate) fn build() -> Result {
    let processor = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    build_for(has_level(&processor).then_some(LEVEL))
}

fn build_for(level: Option<&str>) -> Result {
    let build = ["build", "--release", "--package", "polder"];
    let Some(level) = level else {
        return run("building polder (release)", &mut cargo(&build));
    };
    // `RUSTFLAGS`, where it is set, is taken instead.
    let flags =
        format!("target.'cfg(target_arch = \"x86_64\")'.rustflags = ['-Ctarget-cpu={level}']");
    let mut command = cargo(&build);
    run(&format!("building polder (release, {level})"), command.args(["--config", &flags]))
}

/// Whether each processor is of the level.
fn has_level(processors: &str) -> bool {
    let mut flags = processors.lines().filter(|line| line.starts_with("flags")).peekable();
    flags.peek().is_some()
        && flags.all(|line| FEATURES.iter().all(|feature| line.split(' ').any(|is| is == *feature)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_is_that_of_all_processors() {
        let new = "flags\t\t: fpu sse4_2 movbe avx f16c fma avx2 bmi1 bmi2";
        let old = "flags\t\t: fpu sse4_2 movbe avx f16c fma avx2fake bmi1 bmi2";
        assert!(has_level(new));
        assert!(!has_level(old));
        assert!(!has_level(&format!("{new}\n\n{old}")));
        assert!(!has_level("Features\t: fp asimd"), "no x86-64");
    }
}
