from __future__ import annotations

import time

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from monitor.untrusted.redact import REDACTED, redact


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("proxy --bypass local --dbpass x", "proxy --bypass local --dbpass [redacted]"),
        ("psql --password=x", "psql --password=[redacted]"),
        ("psql --password x db", "psql --password [redacted] db"),
        ("psql --password= x", "psql --password= [redacted]"),
        ("tool --password --token x", "tool --password [redacted] [redacted]"),
        ("env PASSWORD=x true", "env PASSWORD=[redacted] true"),
        ("env PGPASSWORD=x true", "env PGPASSWORD=[redacted] true"),
        (
            "docker run -e MYSQL_ROOT_PASSWORD=x db",
            "docker run -e MYSQL_ROOT_PASSWORD=[redacted] db",
        ),
        ("kubectl create --from-literal=token=x", "kubectl create --from-literal=token=[redacted]"),
        (
            "java -Dspring.datasource.password=x Main",
            "java -Dspring.datasource.password=[redacted] Main",
        ),
        ("aws --secret-access-key x s3", "aws --secret-access-key [redacted] s3"),
        (
            "tool --api-key x --apikey=y --api_key:z",
            "tool --api-key [redacted] --apikey=[redacted] --api_key:[redacted]",
        ),
        ("tool --private-key-data=x", "tool --private-key-data=[redacted]"),
        ("tool --credentials x --auth=y", "tool --credentials [redacted] --auth=[redacted]"),
        ("sshpass -p x ssh -p 22 host", "sshpass -p [redacted] ssh -p [redacted] host"),
        ("mysql -uroot -px db", "mysql -uroot -p[redacted] db"),
        ("sudo /usr/bin/mysql -px", "sudo /usr/bin/mysql -p[redacted]"),
        ("curl -u me:x https://h/", "curl -u [redacted] https://h/"),
        ("curl -sume:x https://h/", "curl -su[redacted] https://h/"),
        ("curl --user me:x --proxy-user=me:y", "curl --user [redacted] --proxy-user=[redacted]"),
        ("redis-cli -a x get k", "redis-cli -a [redacted] get k"),
        ("git clone https://me:x@h/r.git", "git clone https://me:[redacted]@h/r.git"),
        ("git clone https://x@h/r.git", "git clone https://[redacted]@h/r.git"),
        ("git clone ssh://git@h/r.git", "git clone ssh://git@h/r.git"),
        ("app postgres://u:a/b@c@h/db", "app postgres://u:[redacted]@h/db"),
        ("get http://h/?a=b&access_token=x&c=d", "get http://h/?a=b&access_token=[redacted]"),
        # Not secrets.
        ("ssh -p 22 host", "ssh -p 22 host"),
        ("mkdir -pv a", "mkdir -pv a"),
        ("passwd root", "passwd root"),
        ("/usr/bin/apt-key list", "/usr/bin/apt-key list"),
        ("git log --author=me", "git log --author=me"),
        ("nginx -c /etc/ssl/server.key -g x", "nginx -c /etc/ssl/server.key -g x"),
        ("setxkbmap --keyboard=de", "setxkbmap --keyboard=de"),
    ],
)
def test_redact(command: str, shown: str) -> None:
    assert redact(command.split(" ")) == shown.split(" ")


@pytest.mark.parametrize(
    ("argv", "shown"),
    [
        ([], []),
        ([""], [""]),
        (["curl", "-H", "Authorization: Bearer x"], ["curl", "-H", "Authorization: [redacted]"]),
        (["curl", "-H", "X-Api-Key: x"], ["curl", "-H", "X-Api-Key: [redacted]"]),
        (["sh", "-c", "mysql -px db; ls"], ["sh", "-c", "mysql -p[redacted]"]),
        (["sh", "-c", "psql --password 'a b'"], ["sh", "-c", "psql --password [redacted]"]),
        (["sh", "-c", "echo  two  blanks"], ["sh", "-c", "echo  two  blanks"]),
        (["tool", "--password", "a b"], ["tool", "--password", REDACTED]),
        (["tool", "--password=a b"], ["tool", "--password=[redacted]"]),
        (["t", '{"user": "me", "password": "x"}'], ["t", '{"user": "me", "password": [redacted]']),
        (["tool", '{"password":"x"}'], ["tool", '{"password":"[redacted]']),
        (["worker: token x"], ["worker: token [redacted]"]),
    ],
)
def test_redact_arguments_with_blanks(argv: list[str], shown: list[str]) -> None:
    assert redact(argv) == shown


NAMES = st.sampled_from(
    (
        "password",
        "passwd",
        "token",
        "secret",
        "key",
        "credential",
        "credentials",
        "auth",
        "api-key",
        "api_key",
        "APIKEY",
        "PASSWORD",
        "db-password",
        "access_token",
        "AWS_SECRET_ACCESS_KEY",
        "client.secret",
        "passphrase",
    )
)
ANY_TEXT = st.text(st.characters(exclude_characters="\0"), max_size=20)
SECRETS = st.text(st.characters(exclude_characters="\0"), min_size=6, max_size=30)
FORMS = st.sampled_from(
    [
        lambda name, secret: [f"--{name}={secret}"],
        lambda name, secret: [f"--{name}", secret],
        lambda name, secret: [f"-{name}", secret],
        lambda name, secret: [f"{name}={secret}"],
        lambda name, secret: [f"{name}: {secret}"],
        lambda name, secret: [f"-e{name}:{secret}"],
        lambda name, secret: ["-H", f"Authorization: Bearer {secret}"],
        lambda name, secret: ["sh", "-c", f"tool --{name} '{secret}' more"],
        lambda name, secret: ["sh", "-c", f"{name}={secret} tool"],
    ]
)


@given(st.lists(ANY_TEXT), NAMES, SECRETS, FORMS, st.lists(ANY_TEXT))
def test_a_secret_never_survives(before, name, secret, form, after) -> None:  # type: ignore[no-untyped-def]
    assume(secret.strip() and secret not in f"{form(name, '')} {REDACTED}")
    assume(not any(secret in text for text in (*before, *after)))
    argv = ["program", *before, *form(name, secret), *after]
    shown = redact(argv)
    assert not any(secret in text for text in shown)
    assert len(shown) == len(argv)


@given(
    st.sampled_from(["http", "https", "postgres", "redis"]),
    st.from_regex(r"[^\s@]{6,}", fullmatch=True),
)
def test_a_password_in_a_url_never_survives(scheme: str, secret: str) -> None:
    assume(secret not in REDACTED and secret not in "user-name")
    assert secret not in redact(["tool", f"{scheme}://user-name:{secret}@host/path"])[1]


def test_no_command_line_stalls_the_redaction() -> None:
    start = time.process_time()
    for text in ("token" * 800, "a-" * 2000, "key " * 1000, "://" * 1300, "http://:" * 500):
        redact(["curl", text])
    assert time.process_time() - start < 1.0
