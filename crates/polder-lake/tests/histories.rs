//! Random histories of a table, held against a simple model of it: after every step each state that
//! is kept has the model's columns and rows, filters find what they find there, and the names and
//! versions are the same. Faults come and go on the way. What nothing reaches is nowhere, or where a run
//! died, until orphan removal takes it.
//!
//! `PROPTEST_CASES` says how many histories.

mod driver;
mod model;

use proptest::prelude::*;
use proptest::test_runner::Config;

use self::driver::History;
use crate::faulty::catalog::Fault;

/// Histories where nothing else is said.
const CASES: u32 = 24;
const STEPS_MAX: usize = 12;

/// What is done. Numbers choose among what there is when it is done.
#[derive(Clone, Debug)]
enum Action {
    Append {
        rows: u8,
    },
    Replace {
        rows: u8,
        columns: u8,
    },
    AddColumn {
        kind: u8,
        rows: u8,
    },
    DropColumn {
        which: u8,
    },
    RenameColumn {
        which: u8,
    },
    WidenColumn {
        which: u8,
        rows: u8,
    },
    MoveColumn {
        which: u8,
    },
    Repartition {
        how: u8,
        rows: u8,
    },
    RowDelta {
        file: u8,
        rows: u8,
    },
    /// A run that deletes rows and adds others.
    Merge {
        file: u8,
        rows: u8,
    },
    Overwrite {
        file: u8,
        rows: u8,
    },
    DeleteFile {
        file: u8,
    },
    Rewrite {
        files: u8,
    },
    Rollback {
        to: u8,
    },
    Expire {
        versions: u8,
        history: u8,
    },
    /// What is worth it, as maintenance does it.
    Optimize,
    /// Old metadata goes, and manifests are merged.
    Metadata,
    Tag {
        of: u8,
    },
    Pin {
        of: u8,
    },
    Unpin {
        which: u8,
    },
    /// A run that dies before its commit.
    Crash {
        rows: u8,
    },
    /// What nothing reaches goes; before that it may come back once.
    Orphans {
        restore: bool,
    },
    /// The last run, once more.
    Again,
    /// A run that began before another action, and ends after it.
    Overtaken {
        by: Box<Action>,
    },
    /// The same of a rewrite.
    OvertakenRewrite {
        files: u8,
        by: Box<Action>,
    },
}

#[derive(Clone, Debug)]
struct Step {
    action: Action,
    fault: Fault,
}

fn simple() -> impl Strategy<Value = Action> {
    let n = any::<u8>;
    let few = || 0..12_u8;
    prop_oneof![
        4 => few().prop_map(|rows| Action::Append { rows }),
        2 => (few(), n()).prop_map(|(rows, columns)| Action::Replace { rows, columns }),
        2 => (n(), few()).prop_map(|(kind, rows)| Action::AddColumn { kind, rows }),
        1 => n().prop_map(|which| Action::DropColumn { which }),
        1 => n().prop_map(|which| Action::RenameColumn { which }),
        1 => (n(), few()).prop_map(|(which, rows)| Action::WidenColumn { which, rows }),
        1 => n().prop_map(|which| Action::MoveColumn { which }),
        2 => (n(), few()).prop_map(|(how, rows)| Action::Repartition { how, rows }),
        3 => (n(), few()).prop_map(|(file, rows)| Action::RowDelta { file, rows }),
        2 => (n(), few()).prop_map(|(file, rows)| Action::Merge { file, rows }),
        2 => (n(), few()).prop_map(|(file, rows)| Action::Overwrite { file, rows }),
        1 => n().prop_map(|file| Action::DeleteFile { file }),
        2 => n().prop_map(|files| Action::Rewrite { files }),
        2 => n().prop_map(|to| Action::Rollback { to }),
        2 => (0..3_u8, 0..4_u8).prop_map(|(versions, history)| Action::Expire { versions, history }),
        2 => Just(Action::Optimize),
        1 => Just(Action::Metadata),
        1 => n().prop_map(|of| Action::Tag { of }),
        1 => n().prop_map(|of| Action::Pin { of }),
        1 => n().prop_map(|which| Action::Unpin { which }),
        1 => few().prop_map(|rows| Action::Crash { rows }),
        1 => any::<bool>().prop_map(|restore| Action::Orphans { restore }),
        1 => Just(Action::Again),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let overtaken = simple().prop_map(|by| Action::Overtaken { by: Box::new(by) });
    let rewrite = (any::<u8>(), simple())
        .prop_map(|(files, by)| Action::OvertakenRewrite { files, by: Box::new(by) });
    let fault = prop_oneof![
        6 => Just(Fault::Nothing),
        1 => Just(Fault::AnswerLost),
        1 => Just(Fault::AfterSend),
        1 => Just(Fault::ConflictAfterLanding),
        1 => Just(Fault::LateBeforeTheNext),
        1 => Just(Fault::LateAtTheEnd),
        1 => Just(Fault::Conflict),
        1 => Just(Fault::Refused),
    ];
    let action = prop_oneof![8 => simple(), 1 => overtaken, 1 => rewrite];
    (action, fault).prop_map(|(action, fault)| Step { action, fault })
}

/// Carries a history out, and checks it after every step.
fn carry_out(steps: &[Step]) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.expect("runtime").block_on(async {
        let mut history = History::begin().await;
        for step in steps {
            history.step(step).await;
            history.check().await;
        }
        history.end().await;
    });
}

#[test]
fn random_histories_go_as_the_model_says() {
    let own = std::env::var("PROPTEST_CASES").is_err();
    let cases = if own { CASES } else { Config::default().cases };
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    proptest!(config, |(steps in prop::collection::vec(step(), 1..STEPS_MAX))| carry_out(&steps));
}

/// One of everything.
fn everything() -> Vec<Action> {
    vec![
        Action::Append { rows: 6 },
        Action::AddColumn { kind: 1, rows: 4 },
        Action::Repartition { how: 1, rows: 9 },
        Action::RowDelta { file: 0, rows: 2 },
        Action::Merge { file: 0, rows: 2 },
        Action::WidenColumn { which: 0, rows: 3 },
        Action::Rewrite { files: 255 },
        Action::RenameColumn { which: 0 },
        Action::Overtaken { by: Box::new(Action::RowDelta { file: 1, rows: 1 }) },
        Action::Replace { rows: 5, columns: 2 },
        Action::Overtaken { by: Box::new(Action::Append { rows: 2 }) },
        Action::Again,
        Action::Rollback { to: 3 },
        Action::Overwrite { file: 0, rows: 4 },
        Action::MoveColumn { which: 1 },
        Action::DropColumn { which: 0 },
        Action::Expire { versions: 1, history: 2 },
        Action::DeleteFile { file: 0 },
        Action::Rollback { to: 0 },
        Action::Expire { versions: 0, history: 1 },
        Action::Append { rows: 3 },
        Action::Tag { of: 0 },
        Action::Crash { rows: 2 },
        Action::Optimize,
        Action::Expire { versions: 0, history: 1 },
        Action::Orphans { restore: true },
        Action::Metadata,
    ]
}

/// Rows go while a rewrite of their file is under way, and a full refresh comes.
fn overtaken_rewrites() -> Vec<Action> {
    let rewrite = |by: Action| Action::OvertakenRewrite { files: 255, by: Box::new(by) };
    vec![
        Action::Append { rows: 6 },
        rewrite(Action::RowDelta { file: 0, rows: 1 }),
        rewrite(Action::Merge { file: 1, rows: 2 }),
        rewrite(Action::Append { rows: 3 }),
        Action::Pin { of: 1 },
        rewrite(Action::Rollback { to: 0 }),
        rewrite(Action::Replace { rows: 3, columns: 1 }),
        Action::Expire { versions: 0, history: 1 },
        Action::Unpin { which: 0 },
        Action::Expire { versions: 0, history: 1 },
    ]
}

/// The log of `main` forgets a state that a tag keeps, and it can be pinned and gone back to.
fn forgotten() -> Vec<Action> {
    vec![
        Action::Append { rows: 6 },
        Action::Tag { of: 1 },
        Action::Rollback { to: 0 },
        Action::Append { rows: 3 },
        Action::Append { rows: 4 },
        Action::Expire { versions: 1, history: 1 },
        Action::Pin { of: 1 },
        Action::Rollback { to: 1 },
    ]
}

/// Histories that once went wrong, and one of everything.
#[test]
fn histories_that_are_known_to_be_hard() {
    let steps = |actions: Vec<Action>| {
        let steps = actions.into_iter().map(|action| Step { action, fault: Fault::Nothing });
        steps.collect::<Vec<_>>()
    };
    // Many commits of a few rows, some of which go again.
    let mut trickle: Vec<Action> = (0..9).map(|_| Action::Append { rows: 2 }).collect();
    trickle.extend([
        Action::RowDelta { file: 3, rows: 0 },
        Action::Metadata,
        Action::Optimize,
        Action::Metadata,
        Action::Orphans { restore: false },
        Action::Expire { versions: 1, history: 1 },
        Action::Orphans { restore: true },
    ]);
    // The table has wider columns than a run that began before can hold: that is no change that the
    // run's columns do not fit.
    let outgrown = Action::Overtaken { by: Box::new(Action::WidenColumn { which: 0, rows: 0 }) };
    // Two columns of one type in another order than the file has them.
    let swapped = vec![Action::AddColumn { kind: 2, rows: 1 }, Action::MoveColumn { which: 1 }];
    for actions in
        [everything(), overtaken_rewrites(), trickle, forgotten(), vec![outgrown], swapped]
    {
        carry_out(&steps(actions));
    }
}
