//! Limits a reader feels: how long a function and a file may be.

use super::files::File;
use super::source::{functions, lines_without_tests};

const FUNCTION_LINES_MAX: usize = 70;
const FILE_LINES_MAX: usize = 600;

pub(super) fn check(files: &[File], problems: &mut Vec<String>) {
    for file in files {
        let lines = if file.is("rs") {
            lines_without_tests(&file.code)
        } else if file.is("py") {
            file.text.lines().count()
        } else {
            continue;
        };
        if lines > FILE_LINES_MAX && !is_test_file(&file.path) {
            problems.push(format!("{}: {lines} lines, at most {FILE_LINES_MAX}", file.path));
        }
        for function in functions(&file.code).iter().filter(|f| f.lines > FUNCTION_LINES_MAX) {
            problems.push(format!(
                "{}:{}: fn {} has {} lines, at most {FUNCTION_LINES_MAX}",
                file.path, function.line, function.name, function.lines
            ));
        }
    }
}

/// A file that holds nothing but tests may be as long as they are many.
fn is_test_file(path: &str) -> bool {
    path.ends_with("/tests.rs") || path.contains("/tests/")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_one(path: &str, text: &str, expect: &[&str]) {
        let mut problems = Vec::new();
        check(&[File::new(path, text)], &mut problems);
        assert_eq!(problems, expect);
    }

    #[test]
    fn long_functions_and_files_are_named() {
        let long_function = format!("fn f() {{\n{}}}\n", "    x();\n".repeat(69));
        check_one("a.rs", &long_function, &["a.rs:1: fn f has 71 lines, at most 70"]);
        check_one("a.rs", &long_function.replacen("    x();\n", "", 1), &[]);
        let long_file = "x();\n".repeat(601);
        check_one("src/a.rs", &long_file, &["src/a.rs: 601 lines, at most 600"]);
        check_one("src/tests.rs", &long_file, &[]);
        check_one("x/tests/main.rs", &long_file, &[]);
        check_one("a.md", &long_file, &[]);
    }
}
