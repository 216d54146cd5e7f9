//! In PostgreSQL, where several write at once. Needs the servers of `cargo xtask services up`.

use sqlx::PgPool;

use super::*;

/// A database of a test's own.
struct Database {
    admin: PgPool,
    name: String,
    control: Control,
}

impl Database {
    async fn new() -> Self {
        let address = std::env::var("POLDER_TEST_PG_URL").expect(
            "POLDER_TEST_PG_URL is not set: run `cargo xtask services up` and \
             `eval \"$(cargo xtask services env)\"`",
        );
        let admin = PgPool::connect(&address).await.expect("PostgreSQL");
        let name = format!("schedule_{}", Uuid::new_v4().simple());
        sqlx::query(&format!("CREATE DATABASE {name}")).execute(&admin).await.expect("created");
        let (base, _) = address.rsplit_once('/').expect("address");
        let own = Control::new().await;
        let read = Arc::clone(&own.now);
        let clock = Clock::of(move || read.load(Ordering::SeqCst), Uuid::now_v7);
        let store = Store::open(&format!("{base}/{name}")).await.expect("store");
        Self { admin, name, control: Control { store: store.with_clock(clock), ..own } }
    }

    async fn remove(self) {
        let Self { admin, name, control } = self;
        control.store.pool().close().await;
        let sql = format!("DROP DATABASE {name} WITH (FORCE)");
        sqlx::query(&sql).execute(&admin).await.expect("dropped");
    }
}

/// A tick goes by times, a look by revisions, an erasure by orgs, a plan by names: each holds rows that the
/// others want.
#[tokio::test]
async fn those_who_write_the_same_schedules_do_not_wait_for_each_other_for_ever() {
    let database = Database::new().await;
    let control = &database.control;
    let ids: Vec<String> = (0..30).map(|id| format!("o{id:02}")).collect();
    let all = || files(HOURLY, ids.iter().map(String::as_str));
    control.apply(&all()).await;
    control.follow(None).await;
    let gone = Principal::Operator.authorize(&"o15".parse().expect("id")).expect("org");
    for round in 0..10 {
        // Those that changed first are due last.
        control
            .sql(
                "UPDATE polder_schedules SET spec = spec || ' ', \
                 next_ms = 1000000000 - CAST(substr(org, 2) AS BIGINT)",
            )
            .await;
        let mut other = all();
        other.orgs.retain(|id, _| id.as_str() != "o15");
        for org in other.orgs.values_mut() {
            org.name = Some(format!("round {round}"));
        }
        let (ticked, (), (), forgotten) = tokio::join!(
            tick(&control.store),
            async {
                control.follow(None).await;
            },
            control.apply(&other),
            crate::churn::forget(&control.store, &gone),
        );
        ticked.expect("ticked");
        forgotten.expect("forgotten");
        control.apply(&all()).await;
        control.follow(None).await;
        assert_eq!(control.orgs().await.len(), ids.len(), "round {round}");
    }
    database.remove().await;
}

#[tokio::test]
async fn an_org_whose_row_is_no_json_stops_no_other() {
    for broken in ["declared", "adjusted"] {
        let database = Database::new().await;
        let control = &database.control;
        control.apply(&files(HOURLY, ["1", "2"])).await;
        control.follow(None).await;
        control.sql(&format!("UPDATE polder_desired SET {broken} = '{{' WHERE id = '2'")).await;
        // Files that do not name it leave it as it is.
        control.apply(&files(HOURLY, ["1", "3"])).await;
        control.follow(None).await;
        assert_eq!(control.orgs().await, ["1", "3"], "{broken}");
        control.change("2", layer(json!({ "template": "crm" }))).await;
        control.follow(None).await;
        assert_eq!(control.orgs().await, ["1", "2", "3"], "{broken}");
        control.check().await;
        database.remove().await;
    }
}
