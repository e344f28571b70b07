"""A little store: S3's API with signatures checked (SigV4), and PUT with a bearer token. Told by files how to fare.

objects.py PORT CERTIFICATE KEY DIRECTORY; in the directory: `keys` (ID SECRET, a line each) and `token`; `fault` (a code to
answer with) and `delay` (seconds to wait), where there are any; `objects/` and `answered` are what it writes.
"""
import hashlib, hmac, http.server, json, os, ssl, sys, time, urllib.parse

port, certificate, private, directory = sys.argv[1:]
parts = {}


def at(name):
    return os.path.join(directory, name)


def said(name):
    try:
        with open(at(name)) as file:
            return file.read().strip()
    except FileNotFoundError:
        return ""


def sign(key, text):
    return hmac.new(key, text.encode(), hashlib.sha256).digest()


def refusal(method, target, headers, body):
    """Why the signature is wrong, as S3 says it; nothing where it is right."""
    path, _, query = target.partition("?")
    scheme, _, rest = headers.get("authorization", "").partition(" ")
    if scheme != "AWS4-HMAC-SHA256":
        return "AccessDenied"
    fields = dict(field.strip().split("=", 1) for field in rest.split(","))
    identity, day, region, service, end = fields["Credential"].split("/")
    secret = dict(line.split(" ") for line in said("keys").splitlines()).get(identity)
    if secret is None:
        return "InvalidAccessKeyId"
    if (region, service, end) != ("eu-test-1", "s3", "aws4_request"):
        return "AuthorizationHeaderMalformed"
    stamp = headers["x-amz-date"]
    then = time.mktime(time.strptime(stamp, "%Y%m%dT%H%M%SZ")) - time.timezone
    if abs(time.time() - then) > 900 or not stamp.startswith(day):
        return "RequestTimeTooSkewed"
    if headers["x-amz-content-sha256"] != hashlib.sha256(body).hexdigest():
        return "XAmzContentSHA256Mismatch"
    signed = fields["SignedHeaders"].split(";")
    if not {"host", "x-amz-date", "x-amz-content-sha256"} <= set(signed):
        return "AccessDenied"
    pairs = sorted(pair if "=" in pair else pair + "=" for pair in query.split("&") if pair)
    canonical = "\n".join(
        [method, path, "&".join(pairs)]
        + [f"{name}:{' '.join(headers[name].split())}" for name in signed]
        + ["", ";".join(signed), headers["x-amz-content-sha256"]]
    )
    scope = f"{day}/{region}/{service}/{end}"
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    key = ("AWS4" + secret).encode()
    for text in (day, region, service, end):
        key = sign(key, text)
    expected = sign(key, f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{digest}").hex()
    return "" if hmac.compare_digest(expected, fields["Signature"]) else "SignatureDoesNotMatch"


class Store(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def handle_one(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        time.sleep(float(said("delay") or 0))
        if fault := said("fault"):
            return self.answer(int(fault), f"<Error><Code>Told</Code>{self.headers.get('authorization')}</Error>")
        path, _, query = self.path.partition("?")
        if path.startswith("/dav/"):
            if self.headers.get("authorization") != f"Bearer {said('token')}":
                return self.answer(401, "")
        elif why := refusal(self.command, self.path, self.headers, body):
            secret = said("keys")
            return self.answer(403, f"<Error><Code>{why}</Code><StringToSign>{secret}</StringToSign></Error>")
        asked = urllib.parse.parse_qs(query, keep_blank_values=True)
        if self.command == "POST" and "uploads" in asked:
            parts[path] = {}
            return self.answer(200, "<InitiateMultipartUploadResult><UploadId>u1</UploadId></InitiateMultipartUploadResult>")
        if self.command == "PUT" and "partNumber" in asked:
            parts[path][int(asked["partNumber"][0])] = body
            return self.answer(200, "")
        if self.command == "POST" and "uploadId" in asked:
            numbered = parts.pop(path)
            if sorted(numbered) != list(range(1, len(numbered) + 1)):
                return self.answer(400, "<Error><Code>InvalidPart</Code></Error>")
            self.put(path, b"".join(numbered[number] for number in sorted(numbered)))
            return self.answer(200, "<CompleteMultipartUploadResult><ETag>\"e\"</ETag></CompleteMultipartUploadResult>")
        if self.command == "PUT":
            self.put(path, body)
            return self.answer(200, "")
        return self.answer(405, "")

    do_PUT = do_POST = do_DELETE = do_GET = do_MKCOL = handle_one

    def put(self, path, body):
        file = at("objects") + urllib.parse.unquote(path)
        os.makedirs(os.path.dirname(file), exist_ok=True)
        with open(file + ".part", "wb") as new:
            new.write(body)
        os.rename(file + ".part", file)

    def answer(self, code, body):
        with open(at("answered"), "a") as file:
            file.write(json.dumps([self.command, self.path, code]) + "\n")
        self.send_response(code)
        self.send_header("etag", '"e"')
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_):
        pass


context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(certificate, private)
server = http.server.ThreadingHTTPServer(("127.0.0.1", int(port)), Store)
server.socket = context.wrap_socket(server.socket, server_side=True)
print("ready", flush=True)
server.serve_forever()
