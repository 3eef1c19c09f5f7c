//! What a client may try to inject: into emails, headers, cookies and other users' sessions.

use sqlx::PgPool;

use crate::harness::Service;

/// S3: the email is sent to the stored address; look-alike addresses match no account.
#[sqlx::test]
async fn s3_look_alike_addresses_match_no_account(pool: PgPool) {
    let service = Service::start_with_settings(&pool, &["--network-burst=1000"]).await;
    for email in ["mike@example.com", "nguyen@example.com", "kate@xn--bcher-kva.example"] {
        service.has_account(email).await;
    }
    for email in [
        "m\u{131}ke@example.com",
        "\u{17f}ike@example.com",
        "mi\u{212a}e@example.com",
        "nguyễn@example.com",
        "nguye\u{302}\u{303}n@example.com",
    ] {
        let answer = service.client().starts_recovery(email).await;
        assert_eq!(answer.error(), (400, "email_invalid"), "{email}");
    }
    // Other spellings of the same address match the stored one.
    for email in ["MIKE@EXAMPLE.COM", "  Mike@example.com\t", "mike@\u{ff45}xample.com"] {
        assert!(service.client().starts_recovery(email).await.is_code_sent(), "{email}");
    }
    for email in ["kate@bücher.example", "KATE@BÜCHER.example"] {
        assert!(service.client().starts_recovery(email).await.is_code_sent(), "{email}");
    }
    service.until_outbox_has(0).await;
    let mut recipients: Vec<_> = service.relay.mails().into_iter().flat_map(|mail| mail.recipients).collect();
    recipients.sort();
    recipients.dedup();
    assert_eq!(recipients, ["kate@xn--bcher-kva.example", "mike@example.com"]);
    service.stops().await;
}

/// S5: no client input reaches a header of an email or an SMTP command. The test relay also refuses
/// any command that contains a stray CR or LF.
#[sqlx::test]
async fn s5_client_input_reaches_no_header_or_smtp_command(pool: PgPool) {
    let service = Service::start_with_settings(&pool, &["--network-burst=1000"]).await;
    service.has_account("trader@example.com").await;
    for email in [
        "trader@example.com\r\nBcc: evil@example.com",
        "trader@example.com\nBcc: evil@example.com",
        "\"trader\r\n\"@example.com",
        "\"a b\"@example.com",
        "trader@example.com>\r\nRCPT TO:<evil@example.com",
        "trader@[127.0.0.1]\0",
        "Evil <trader@example.com>",
    ] {
        assert_eq!(
            service.client().starts_recovery(email).await.error(),
            (400, "email_invalid"),
            "{email:?}"
        );
    }
    let evil = "Bcc: evil@example.com 9999 9999 <b>Call +84 1234 5678</b>";
    let mut client = service
        .client()
        .with("user-agent", evil)
        .with("accept-language", &format!("vi, {evil}"))
        .with("host", "evil.example")
        .with("x-forwarded-host", "evil.example")
        .with("x-forwarded-for", evil);
    assert!(client.starts_recovery("trader@example.com").await.is_code_sent());
    let mail = service.relay.mail(1).await;
    for part in [mail.raw.clone(), mail.text(), mail.html()] {
        assert!(!part.contains("evil") && !part.contains("9999") && !part.contains("+84"), "{part}");
    }
    assert!(mail.text().contains("Không xác định"));
    service.stops().await;
}

/// S7: Host headers change neither email, cookie nor body.
#[sqlx::test]
async fn s7_host_headers_change_nothing(pool: PgPool) {
    let service = Service::start(&pool).await;
    service.has_account("trader@example.com").await;
    let mut client = service
        .client()
        .with("host", "evil.example")
        .with("x-forwarded-host", "evil.example")
        .with("forwarded", "host=evil.example;proto=http");
    let answer = client.starts_recovery("trader@example.com").await;
    assert!(answer.is_code_sent());
    assert!(!format!("{answer:?}").contains("evil"));
    assert!(!service.relay.mail(1).await.raw.contains("evil"));
    service.stops().await;
}

/// L3, for the cookies of `start`: the service never adopts a planted cookie.
#[sqlx::test]
async fn l3_a_planted_cookie_is_not_adopted(pool: PgPool) {
    let service = Service::start_with_settings(&pool, &["--network-burst=1000", "--address-burst=3"]).await;
    let mut attacker = service.client();
    attacker.starts_recovery("victim@example.com").await;
    let planted = attacker.cookie.clone().unwrap();
    let token = planted.split_once('=').unwrap().1.to_owned();
    for (n, cookie) in [
        format!("%5F%5FHost-vos_recovery={token}"),
        format!("__host-vos_recovery={token}"),
        format!("{planted}; {planted}"),
        format!("__Host-vos_recovery =  {token}"),
    ]
    .into_iter()
    .enumerate()
    {
        // Empties the rate limits, so that the address's limit refuses none of the starts.
        sqlx::query("DELETE FROM throttle").execute(&pool).await.unwrap();
        let mut victim = service.client();
        victim.cookie = Some(cookie.clone());
        assert!(victim.starts_recovery("victim@example.com").await.is_code_sent());
        assert_ne!(victim.cookie.as_deref(), Some(planted.as_str()), "{cookie}");
        assert_eq!(service.count("recovery_session").await, i64::try_from(n).unwrap() + 2);
    }
    service.stops().await;
}
