"""A submission server by aiosmtpd: STARTTLS, then XOAUTH2. Prints its port, and every mail with who has sent it.

Arguments: a folder with cert.pem and key.pem, and the URL that says whether a token is good.
"""

import asyncio
import base64
import json
import logging
import pathlib
import ssl
import sys
import urllib.parse
import urllib.request

from aiosmtpd.smtp import MISSING, SMTP, AuthResult

logging.getLogger("mail.log").setLevel(logging.ERROR)
folder, introspection = pathlib.Path(sys.argv[1]), sys.argv[2]


class Handler:
    async def auth_XOAUTH2(self, server, args):
        response = base64.b64decode(args[1]) if len(args) == 2 else await server.challenge_auth("")
        if response is MISSING:
            return AuthResult(success=False)
        user, token, *end = response.decode().split("\x01")
        assert end == ["", ""] and user.startswith("user=") and token.startswith("auth=Bearer ")
        query = urllib.parse.urlencode({"token": token.removeprefix("auth=Bearer ")})
        with urllib.request.urlopen(f"{introspection}?{query}") as answer:
            if answer.read() == b"true":
                return AuthResult(success=True, auth_data=user.removeprefix("user="))
        ended = await server.challenge_auth('{"status":"401","schemes":"bearer"}')
        return AuthResult(success=False, handled=ended is MISSING)

    async def handle_DATA(self, server, session, envelope):
        mail = {"user": session.auth_data, "to": envelope.rcpt_tos, "raw": envelope.content.decode()}
        print(json.dumps(mail), flush=True)
        return "250 kept"


class Submission(SMTP):
    # RFC 4954 §4: a response of AUTH may have 12,288 octets.
    line_length_limit = 12288


async def serve():
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    options = {
        "hostname": "localhost",
        "tls_context": tls,
        "require_starttls": True,
        "auth_required": True,
        "auth_exclude_mechanism": ["LOGIN", "PLAIN"],
    }
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Submission(Handler(), **options), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


asyncio.run(serve())
