//! `docs/options.md` has every option of every backend of this build.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use eventstore::backend::{Context, Error};

const BACKENDS: &[(&str, &str)] = &[
    ("memory:", "## For all backends"),
    #[cfg(feature = "lmdb")]
    ("lmdb:./never-made", "## LMDB"),
    #[cfg(feature = "rocksdb")]
    ("rocksdb:./never-made", "## RocksDB"),
    #[cfg(feature = "fjall")]
    ("fjall:./never-made", "## fjall"),
    #[cfg(feature = "sled")]
    ("sled:./never-made", "## sled"),
    #[cfg(feature = "http")]
    ("http://127.0.0.1:1", "## HTTP"),
    #[cfg(feature = "http")]
    ("gosync+http://127.0.0.1:1", "## Go Sync Kit"),
    #[cfg(feature = "postgres")]
    ("postgres://127.0.0.1:1/never-made", "## PostgreSQL"),
];

fn section<'a>(document: &'a str, title: &str) -> &'a str {
    let (_, section) = document.split_once(title).unwrap();
    section.split("\n## ").next().unwrap()
}

/// The options in the table of a section, with their defaults and ranges.
fn documented(section: &str) -> Vec<&str> {
    section.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`')).map(|(name, _)| name).collect()
}

#[tokio::test]
async fn the_document_has_every_option_and_no_other() {
    let document = include_str!("../../docs/options.md");
    let for_all = documented(section(document, "## For all backends"));
    for (url, title) in BACKENDS {
        let error = eventstore::backend::open(&format!("{url}?no_such_option=1")).await.unwrap_err();
        let Error::InvalidOption { option, reason } = error else { panic!("{url}: {error}") };
        assert_eq!(option, "no_such_option");
        let (_, known) = reason.split_once("it has ").unwrap();
        let mut known: Vec<_> = known.split(", ").collect();
        let mut expected = documented(section(document, title));
        if *url == "memory:" {
            expected.retain(|option| *option != "create_if_missing");
        } else if *title == "## Go Sync Kit" {
            let of_http = documented(section(document, "## HTTP"));
            expected.extend(of_http.into_iter().filter(|option| !["lost_after", "retry_waits"].contains(option)));
        } else if !matches!(*title, "## HTTP" | "## PostgreSQL") {
            expected.extend(&for_all);
        }
        known.sort_unstable();
        expected.sort_unstable();
        assert_eq!(known, expected, "{title}");
    }
}

#[tokio::test]
async fn the_documents_defaults_can_be_given() {
    let document = include_str!("../../docs/options.md");
    let directory = tempfile::tempdir().unwrap();
    for (url, title) in BACKENDS[1..].iter().filter(|(url, _)| !url.contains("://")) {
        let mut options = Vec::new();
        for line in section(document, title).lines().filter(|line| line.starts_with("| `")) {
            let mut columns = line.split(" | ").map(|column| column.trim_matches(['|', ' ', '`']));
            let (name, default) = (columns.next().unwrap(), columns.next().unwrap());
            if !default.contains("half") {
                options.push(format!("{name}={}", default.replace([',', ' '], "")));
            }
        }
        let (scheme, _) = url.split_once(':').unwrap();
        let url = format!("{scheme}:{}?{}", directory.path().join(scheme).display(), options.join("&"));
        eventstore::backend::open(&url).await.unwrap_or_else(|error| panic!("{url}: {error}")).close().await.unwrap();
    }
}

#[tokio::test]
async fn a_server_has_urls_of_its_own_and_no_files() {
    let (ctx, nowhere) = (Context::background(), std::path::Path::new("./never-made"));
    for url in ["http://127.0.0.1:1/stores/a", "https://localhost:1", "unix:/nowhere/s.sock"] {
        let repaired = eventstore::backend::repair(&ctx, url).await.map(drop);
        for refused in [repaired, eventstore::backend::restore(&ctx, nowhere, url).await] {
            assert!(
                matches!(&refused, Err(Error::Unsupported { what }) if what.contains("server")),
                "{url}: {refused:?}"
            );
        }
        let url = &format!("{url}?connect_timeout=50ms");
        for opened in [
            eventstore::open(url).await.map(drop),
            eventstore::open_existing(url).await.map(drop),
            eventstore::open_read_only(url).await.map(drop),
        ] {
            match cfg!(feature = "http") {
                true => assert!(
                    matches!(opened, Err(Error::Unavailable { .. } | Error::InvalidOption { .. })),
                    "{url}: {opened:?}"
                ),
                false => {
                    assert!(
                        matches!(&opened, Err(Error::Unsupported { what }) if what.contains("`http`")),
                        "{url}: {opened:?}"
                    );
                }
            }
        }
    }
}

#[test]
fn what_is_secret_in_a_url_is_not_shown() {
    for (url, shown) in [
        ("lmdb:./data?map_size=1GiB", "lmdb:./data?map_size=1GiB"),
        ("http://127.0.0.1:7080/stores/a", "http://127.0.0.1:7080/stores/a"),
        ("https://host?token_file=/run/token", "https://host?token_file=/run/token"),
        ("postgres://db/shop?user=app&schema=a", "postgres://db/shop?user=app&schema=a"),
        ("postgres://app@db1:5433,db2/shop", "postgres://app@db1:5433,db2/shop"),
        ("postgres://app:geheim@db/shop", "postgres://app:(hidden)@db/shop"),
        ("postgres://app:geheim@db:5432/shop?schema=a", "postgres://app:(hidden)@db:5432/shop?schema=a"),
        ("postgres://db/shop?user=app&password=geheim", "postgres://db/shop?user=app&password=(hidden)"),
        ("postgres://db/shop?pass%77ord=geheim", "postgres://db/shop?pass%77ord=(hidden)"),
        // What should have been written as %40, %2F and %3F.
        ("postgres://app:geheim@geheim/geheim?geheim@db/shop", "postgres://app:(hidden)@db/shop"),
        ("http://app:geheim@host", "http://app:(hidden)@host"),
        ("http://host?token=geheim", "http://host?token=(hidden)"),
    ] {
        assert_eq!(eventstore::backend::shown(url), shown);
    }
}

#[test]
fn a_url_is_checked_without_the_store() {
    use eventstore::backend::check_url;
    for url in ["memory:", "memory:?id_filter=1MiB", "lmdb:./nowhere?map_size=1MiB"] {
        if cfg!(feature = "lmdb") || !url.starts_with("lmdb") {
            check_url(url).expect(url);
        }
    }
    for url in ["localhost:7080", "nope:./data", "rocks:./data"] {
        assert!(matches!(check_url(url), Err(Error::Unsupported { .. })), "{url}");
    }
    for url in ["memory:here", "memory:?colour=red", "./data"] {
        assert!(matches!(check_url(url), Err(Error::InvalidOption { .. })), "{url}");
    }
    #[cfg(feature = "http")]
    {
        check_url("http://nowhere.invalid:7080/stores/a?retry_for=1s").expect("valid");
        check_url("gosync+http://nowhere.invalid/sync").expect("valid");
        for url in ["http://", "http://host:port", "http://app:geheim@host", "gosync+http://host?lost_after=1s"] {
            let refused = check_url(url);
            assert!(matches!(refused, Err(Error::InvalidOption { .. })), "{url}: {refused:?}");
        }
    }
}
