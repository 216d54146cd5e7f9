//! How long others wait beside an org with very many runs in the queue.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use super::{Dice, Told, clock, order, org};
use crate::queue::{self, Asked, Claimer, JobKind, Lease, Outcome, QueuedRun};
use crate::store::Store;
use crate::usage::Spent;

/// Org 99 asks for so many runs of twenty tables.
async fn wait_in_line(store: &Store, waiting: usize) {
    let asked =
        |run: usize| Asked { table: format!("t{}", run % 20), source: "s".into(), validate: false };
    let tables: Vec<Asked> = (0..waiting).map(asked).collect();
    queue::submit(store, &org(99), order(JobKind::Ingest, &tables)).await.expect("queued");
}

/// How long runs of ten orgs take from being asked for to their end, sorted, beside an org with so many
/// runs waiting. Arrivals and lengths are the same whatever that is.
async fn others_ms(seed: u64, waiting: usize, others: usize) -> Vec<i64> {
    let (now, clock) = clock();
    let store = Store::in_memory().await.with_clock(clock);
    let mut dice = Dice(seed);
    wait_in_line(&store, waiting).await;
    // Half a minute on average, and some much longer; one asked for every twelve seconds: a fifth of
    // what the servers can do.
    let length = |dice: &mut Dice| {
        let normal: f64 = (0..12).map(|_| dice.part()).sum::<f64>() - 6.0;
        (18_000.0 * normal.exp()) as i64
    };
    let mut arrivals = Vec::new();
    let mut at = now.load(Ordering::SeqCst);
    for run in 0..others {
        at += (-dice.part().max(1e-9).ln() * 12_000.0) as i64;
        arrivals.push((at, run as u64 % 10, format!("t{run}"), length(&mut dice)));
    }
    let lengths: BTreeMap<String, i64> =
        arrivals.iter().map(|(_, _, table, length)| (table.clone(), *length)).collect();
    let mut busy = Dice(seed ^ 1);
    let (mut next, mut working, mut took) =
        (0, Vec::<(i64, usize, QueuedRun, Lease)>::new(), vec![]);
    while took.len() < others {
        let done = working.iter().map(|(ends, ..)| *ends).min();
        let arrival = arrivals.get(next).map(|(at, ..)| *at);
        let moment = done.into_iter().chain(arrival).min().expect("something happens");
        now.store(moment, Ordering::SeqCst);
        if arrival == Some(moment) {
            let (_, id, table, _) = &arrivals[next];
            let asked = [Asked { table: table.clone(), source: "s".into(), validate: false }];
            let order = order(JobKind::Ingest, &asked);
            queue::submit(&store, &org(*id), order).await.expect("queued");
            next += 1;
        }
        for index in
            (0..working.len()).rev().filter(|i| working[*i].0 <= moment).collect::<Vec<_>>()
        {
            let (_, _, run, lease) = working.swap_remove(index);
            let (outcome, spent) = (Outcome::Succeeded, Spent::default());
            queue::finish(&store, &lease, outcome, spent, "{}").await.expect("told");
            if run.org.as_str() != "99" {
                took.push(moment - run.enqueued_ms);
            }
        }
        for (_, _, _, lease) in &working {
            queue::renew(&store, lease).await.expect("held");
        }
        for server in 0..2 {
            while working.iter().filter(|(_, of, ..)| *of == server).count() < 8 {
                let owner = ["one", "two"][server];
                let claimer = Claimer { owner, per_org: 7 };
                let Some((run, lease)) = queue::claim(&store, claimer).await.expect("asked") else {
                    break;
                };
                let length = match lengths.get(&run.table) {
                    Some(length) if run.org.as_str() != "99" => *length,
                    _ => length(&mut busy),
                };
                working.push((moment + length, server, run, lease));
            }
        }
    }
    took.sort_unstable();
    took
}

#[tokio::test]
async fn an_org_with_ten_thousand_runs_waiting_hardly_delays_another() {
    let (alone, beside) = (others_ms(7, 0, 600).await, others_ms(7, 10_000, 600).await);
    let p99 = |sorted: &[i64]| sorted[sorted.len() * 99 / 100];
    let more = p99(&beside) as f64 / p99(&alone) as f64 - 1.0;
    assert!(more < 0.1, "p99 {} ms instead of {} ms", p99(&beside), p99(&alone));
    let mean = |all: &[i64]| all.iter().sum::<i64>() / all.len() as i64;
    assert!(mean(&beside) < mean(&alone) * 12 / 10, "{} {}", mean(&beside), mean(&alone));
}

/// The same from many seeds, each for a shorter time: all of their runs together, as one p99 of a short time is
/// the length of a single run.
#[tokio::test]
async fn whatever_the_seed_an_org_with_many_runs_waiting_hardly_delays_others() {
    const FEWER: usize = 60;
    let (mut alone, mut beside) = (Vec::new(), Vec::new());
    for seed in 100..120 {
        let told = Told(seed);
        let (without, with) =
            (others_ms(seed, 0, FEWER).await, others_ms(seed, 1_000, FEWER).await);
        let mean = |all: &[i64]| all.iter().sum::<i64>() / all.len() as i64;
        assert!(mean(&with) < mean(&without) * 13 / 10, "{} {}", mean(&with), mean(&without));
        alone.extend(without);
        beside.extend(with);
        drop(told);
    }
    alone.sort_unstable();
    beside.sort_unstable();
    let p99 = |sorted: &[i64]| sorted[sorted.len() * 99 / 100];
    let more = p99(&beside) as f64 / p99(&alone) as f64 - 1.0;
    assert!(more < 0.1, "p99 {} ms instead of {} ms", p99(&beside), p99(&alone));
}
