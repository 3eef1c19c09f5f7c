"""A recovery, a session and a logout by the generated Python client: journey.py URL."""

import json
import re
import sys
import time
import urllib.request

from vos_auth_client import ApiClient, AuthenticationApi, Configuration, SessionsApi
from vos_auth_client import (
    AuthError,
    AuthRecoveryResetRequest,
    AuthRecoveryStartRequest,
    AuthRecoveryVerifyRequest,
)
from vos_auth_client.exceptions import ApiException, BadRequestException, UnauthorizedException

URL = sys.argv[1]
EMAIL = "trader.en@example.com"


def mails():
    with urllib.request.urlopen(f"{URL}/dev/mailbox.json") as answer:
        codes = [mail for mail in json.load(answer) if mail["to"] == [EMAIL]]
    return [code[1] for mail in codes if (code := re.search(r"^(\d{8})\s*$", mail["text"], re.M))]


def cookie_of(headers):
    """The recovery cookie that an answer sets."""
    return re.search(r"__Host-vos_recovery=([^;]*)", headers["set-cookie"])[1]


def refused(call, kind):
    """The error that a call must end in, read into the client's model."""
    try:
        call()
    except kind as error:
        return AuthError.from_json(error.body)
    raise AssertionError(f"no {kind.__name__}")


configuration = Configuration(host=URL)
client = ApiClient(configuration)
recovery, sessions = AuthenticationApi(client), SessionsApi(client)

known = len(mails())
started = recovery.post_api_auth_recovery_start_with_http_info(AuthRecoveryStartRequest(email=EMAIL))
assert started.data.status == "code_sent"
recovery_id = started.headers["x-recovery-id"]
configuration.api_key["RecoveryCookie"] = cookie_of(started.headers)
state = recovery.get_recovery().recovery
assert (state.id, state.email, state.state) == (recovery_id, EMAIL, "code_sent")

# The contract's operations require no security scheme: their cookie is the client's own business.
client.cookie = f"__Host-vos_recovery={cookie_of(started.headers)}"
error = refused(
    lambda: recovery.post_api_auth_recovery_verify(AuthRecoveryVerifyRequest(code="x")), BadRequestException
)
assert (error.error, error.status, error.var_field) == ("code_malformed", 400, "code")
deadline = time.monotonic() + 60
while len(mails()) == known:
    assert time.monotonic() < deadline, "the email does not arrive"
    time.sleep(0.1)
verified = recovery.post_api_auth_recovery_verify_with_http_info(
    AuthRecoveryVerifyRequest(code=mails()[0]), x_recovery_id=recovery_id
)
assert verified.data.status == "verified"
client.cookie = f"__Host-vos_recovery={cookie_of(verified.headers)}"
error = refused(
    lambda: recovery.post_api_auth_recovery_reset_password(AuthRecoveryResetRequest(password="passwordpassword")),
    BadRequestException,
)
assert error.error == "password_guessable" and error.advice
signed_in = recovery.post_api_auth_recovery_reset_password(
    AuthRecoveryResetRequest(password="night train in autumn rain"), x_recovery_id=recovery_id
)
assert signed_in.identity.traits["email"] == EMAIL
assert signed_in.jwt == signed_in.session.tokenized and signed_in.session == signed_in.tokenized_session

configuration.api_key["SessionToken"] = signed_in.session_token
refreshed = sessions.refresh_session()
assert refreshed.session_token == signed_in.session_token and refreshed.session.active
assert [one.current for one in sessions.list_sessions().sessions] == [True]
assert sessions.logout().status == "signed_out"
assert refused(sessions.refresh_session, UnauthorizedException).error == "session_invalid"

# A code that the document does not know.
assert AuthError.from_json('{"error":"of_tomorrow","message":"…","status":400,"more":1}').error == "of_tomorrow"
assert issubclass(UnauthorizedException, ApiException)
print("openapi-generator, python: start, verify, reset, session, logout")
