"""Who may ask the page for what: log-ins, forms, privileges, headers, and from where."""

from dataclasses import replace

from twisted.logger import capturedLogs, formatEvent

from mtunnel_tx.errors import Unauthenticated
from mtunnel_tx.http.gate import REFUSAL_S
from mtunnel_tx.page import resource
from mtunnel_tx.page.sessions import LINK_S, MOST_LINKS
from tests.http.apicase import SECRET, USERS
from tests.page.pagecase import AWAY, HERE, STRONG, WEAK, PageCase, PageWire, a_move

REFUSED = "token=mig@pve!t1=wrong"


class ReachTests(PageCase):
    def test_from_this_host_only(self):
        self.assertIn(b"Log in", self.ask("GET", "/mtunnel/").body)
        answer = self.ask("GET", "/mtunnel/", peer=AWAY)
        self.assertTrue(answer.line.startswith("HTTP/1.1 501"), answer.line)

    def test_from_an_address_of_this_host(self):
        """The link leads there where the daemon listens on one address only."""
        self.patch(resource, "is_this_host", lambda address: address == AWAY.host)
        self.assertIn(b"Log in", self.ask("GET", "/mtunnel/", peer=AWAY).body)

    def test_everything_else_is_the_api(self):
        for path in ("/", "/api2/json/version", "/mtunnelx", "/mtunnel.html", "//mtunnel/"):
            self.assertTrue(self.ask("GET", path).line.startswith("HTTP/1.1 501"), path)

    def test_without_its_last_stroke(self):
        self.assertEqual(self.ask("GET", "/mtunnel").headers["location"], "/mtunnel/")

    def test_other_paths_and_methods(self):
        for method, path in (("GET", "x"), ("GET", "login"), ("POST", ""), ("PUT", ""), ("GET", "../page.js")):
            answer = self.ask(method, f"/mtunnel/{path}", cookie=self.operator())
            self.assertEqual(answer.line, "HTTP/1.1 404 Not Found", path)
        self.assertEqual(self.refusals, ["failed"] * 5)

    def test_refusals_are_counted(self):
        self.ask("POST", "/mtunnel/drain", cookie=self.operator())
        self.ask("GET", "/mtunnel/events")
        wire = PageWire(self.site, HERE)
        wire.write(self.raw("POST", "/mtunnel/login", REFUSED))
        self.clock.advance(REFUSAL_S)
        self.assertEqual(self.refusals, ["forbidden", "unauthenticated", "unauthenticated"])


class EverywhereTests(PageCase):
    reach = "everywhere"

    def test_from_elsewhere(self):
        self.assertIn(b"Log in", self.ask("GET", "/mtunnel/", peer=AWAY).body)


class HeaderTests(PageCase):
    def test_every_answer_has_them(self):
        cookie = self.operator()
        answers = [self.ask("GET", f"/mtunnel/{path}", cookie=cookie) for path in ("", "page.js", "page.css", "x")]
        answers.append(self.ask("POST", "/mtunnel/drain", cookie=cookie))
        for answer in answers:
            policy = answer.headers["content-security-policy"].split("; ")
            self.assertIn("default-src 'none'", policy)
            self.assertIn("script-src 'self'", policy)
            self.assertIn("style-src 'self'", policy)
            self.assertIn("frame-ancestors 'none'", policy)
            self.assertNotIn("unsafe", answer.headers["content-security-policy"])
            self.assertEqual(answer.headers["x-content-type-options"], "nosniff")
            self.assertEqual(answer.headers["referrer-policy"], "no-referrer")
            self.assertEqual(answer.headers["cache-control"], "no-store")

    def test_nothing_stands_inline(self):
        self.status = replace(self.status, moves=(a_move(),), held={300: "why"})
        for text in (self.shown(self.operator()), self.ask("GET", "/mtunnel/").body.decode()):
            self.assertNotRegex(text, r"(?i)<style|\sstyle=|\son\w+=|javascript:")
            self.assertNotRegex(text, r"<script(?! src=\"page\.js\" defer></script>)")


class LogInTests(PageCase):
    def test_by_a_token(self):
        text = self.shown(self.log_in())
        self.assertIn(STRONG, text)
        self.assertNotIn(SECRET, text)

    def test_a_pasted_header_will_do(self):
        for words in (f"PVEAPIToken={STRONG}={SECRET}", f"Authorization: PVEAPIToken={STRONG}={SECRET}"):
            answer = self.ask("POST", "/mtunnel/login", f"token={words.replace(' ', '+')}")
            self.assertEqual(answer.line, "HTTP/1.1 303 See Other", words)

    def test_a_wrong_one_is_counted_and_waits(self):
        wire = PageWire(self.site, HERE)
        with capturedLogs() as events:
            wire.write(self.raw("POST", "/mtunnel/login", REFUSED))
        self.assertEqual([formatEvent(event) for event in events], ["failed login from 127.0.0.1, number 1"])
        self.clock.advance(REFUSAL_S - 0.1)
        self.assertTrue(wire.silent())
        self.clock.advance(0.2)
        answer = wire.response()
        self.assertEqual(answer.line, "HTTP/1.1 401 Unauthorized")
        self.assertNotIn("set-cookie", answer.headers)
        self.assertIn(b"Authentication failed!", answer.body)
        self.assertEqual(self.gate.logins.count("127.0.0.1"), 1)

    def test_who_leaves_is_not_waited_for(self):
        wire = PageWire(self.site, HERE)
        wire.write(self.raw("POST", "/mtunnel/login", REFUSED))
        wire.hang_up()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_link_is_good_once(self):
        key = self.sessions.make_link()
        wire = PageWire(self.site, HERE)
        wire.write(self.raw("GET", f"/mtunnel/enter?key={key}"))
        self.assertEqual(wire.response().headers["location"], "./")
        wire.write(self.raw("GET", f"/mtunnel/enter?key={key}"))
        self.clock.advance(REFUSAL_S)
        self.assertEqual(wire.response().line, "HTTP/1.1 401 Unauthorized")
        self.assertEqual(self.gate.logins.count("127.0.0.1"), 1)

    def test_a_link_is_good_for_a_while(self):
        key = self.sessions.make_link()
        self.clock.advance(LINK_S + 1)
        wire = PageWire(self.site, HERE)
        wire.write(self.raw("GET", f"/mtunnel/enter?key={key}"))
        self.clock.advance(REFUSAL_S)
        self.assertEqual(wire.response().line, "HTTP/1.1 401 Unauthorized")

    def test_tokens_leave_places_to_the_operator(self):
        first = self.operator()
        access = self.sessions._access
        for number in range(20):
            self.patch(access, "authenticate", lambda _, number=number: f"mig@pve!t{number}")
            self.sessions.log_in("x")
        self.sessions.find(first)
        self.operator()
        self.sessions.find(first)
        self.assertEqual(len(self.sessions._sessions), 8)

    def test_links_are_few(self):
        first = self.sessions.make_link()
        for _ in range(MOST_LINKS):
            last = self.sessions.make_link()
        self.sessions.enter(last)
        self.assertRaises(Unauthenticated, self.sessions.enter, first)

    def test_a_token_in_the_address_is_none(self):
        wire = PageWire(self.site, HERE)
        wire.write(self.raw("POST", f"/mtunnel/login?token={STRONG}={SECRET}"))
        self.clock.advance(REFUSAL_S)
        self.assertEqual(wire.response().line, "HTTP/1.1 401 Unauthorized")

    def test_no_secret_is_logged(self):
        key = self.sessions.make_link()
        with capturedLogs() as events:
            self.ask("GET", f"/mtunnel/enter?key={key}")
            self.log_in()
        for event in events:
            self.assertNotIn(key, formatEvent(event))
            self.assertNotIn(SECRET, formatEvent(event))

    def test_a_form_of_another_site(self):
        for header in (
            "Sec-Fetch-Site: cross-site",
            "Sec-Fetch-Site: same-site",
            "Origin: https://evil",
            "Origin: null",
        ):
            answer = self.ask("POST", "/mtunnel/login", f"token={STRONG}={SECRET}", headers=[header])
            self.assertEqual(answer.line, "HTTP/1.1 403 Forbidden", header)
        for header in ("Sec-Fetch-Site: same-origin", "Origin: https://here:8016"):
            answer = self.ask("POST", "/mtunnel/login", f"token={STRONG}={SECRET}", headers=[header])
            self.assertEqual(answer.line, "HTTP/1.1 303 See Other", header)


class SessionTests(PageCase):
    def is_in(self, cookie):
        return b"Log in" not in self.ask("GET", "/mtunnel/", cookie=cookie).body

    def test_they_end_by_age(self):
        cookie = self.log_in()
        self.clock.advance(3599)
        self.assertTrue(self.is_in(cookie))
        self.clock.advance(2)
        self.assertFalse(self.is_in(cookie))

    def test_they_end_with_their_token(self):
        cookie, other = self.log_in(), self.operator()
        (self.root / "user.cfg").write_text(USERS.replace("token:mig@pve!t1:0:0::\n", ""))
        self.assertFalse(self.is_in(cookie))
        self.assertTrue(self.is_in(other))

    def test_they_end_with_their_secret(self):
        cookie = self.log_in()
        file = self.root / "priv" / "token.cfg"
        file.write_text(file.read_text().replace(f"t1 {SECRET}", f"t1 {SECRET[:-1]}6"))
        self.assertFalse(self.is_in(cookie))

    def test_rights_are_those_of_now(self):
        cookie = self.log_in()
        self.assertIn("This daemon", self.shown(cookie))
        (self.root / "user.cfg").write_text(USERS.replace("mig@pve:Administrator,PVEAdmin:", "mig@pve:PVEVMUser:"))
        self.assertNotIn("This daemon", self.shown(cookie))

    def test_they_are_few(self):
        operator, mine = self.operator(), [self.log_in() for _ in range(4)]
        self.assertEqual([self.is_in(cookie) for cookie in mine], [False, False, True, True])
        self.assertTrue(self.is_in(operator))

    def test_logging_out(self):
        cookie, other = self.log_in(), self.log_in()
        answer = self.ask("POST", "/mtunnel/logout", self.form(cookie), cookie=cookie)
        self.assertIn("Max-Age=0", answer.headers["set-cookie"])
        self.assertEqual([self.is_in(cookie), self.is_in(other)], [False, True])


class ActionTests(PageCase):
    def setUp(self):
        super().setUp()
        self.status = replace(self.status, held={300: "why", 301: "why too"})
        self.owners = {300: STRONG, 301: WEAK}

    def post(self, cookie, path, body):
        return self.ask("POST", f"/mtunnel/{path}", body, cookie=cookie)

    def test_settle(self):
        cookie = self.operator()
        answer = self.post(cookie, "settle", self.form(cookie, settle="300+discard"))
        self.assertEqual((answer.line, answer.headers["location"]), ("HTTP/1.1 303 See Other", "./"))
        self.assertEqual(self.done, [(300, True)])
        text = self.shown(cookie)
        self.assertIn("VM 300 is settled; what stays: local:1/a.raw", text)
        self.assertNotIn('data-vmid="300"', text)
        self.assertNotIn("is settled", self.shown(cookie))
        self.post(cookie, "settle", self.form(cookie, settle="301+resume"))
        self.assertEqual(self.done[-1], (301, False))

    def test_why_it_is_not_settled(self):
        cookie, self.failure = self.log_in(), "it is live"
        self.post(cookie, "settle", self.form(cookie, settle="300+resume"))
        self.assertIn("VM 300 is not settled: it is live", self.shown(cookie))

    def test_without_the_sessions_own_word(self):
        cookie, other = self.operator(), self.operator()
        for body in ("settle=300+discard", f"{self.form(other)}&settle=300+discard"):
            for path in ("settle", "drain", "logout"):
                self.assertEqual(self.post(cookie, path, body).line, "HTTP/1.1 403 Forbidden")
        self.assertEqual(self.post("", "settle", body).line, "HTTP/1.1 401 Unauthorized")
        self.clock.advance(5)
        self.assertEqual(self.done, [])

    def test_what_may_not_be_seen_is_not_there(self):
        cookie = self.log_in(WEAK)
        answer = self.post(cookie, "settle", self.form(cookie, settle="300+discard"))
        self.assertEqual(answer.line, "HTTP/1.1 404 Not Found")
        self.assertNotIn(b"why", answer.body)

    def test_what_may_be_seen_may_not_always_be_settled(self):
        cookie = self.log_in(WEAK)
        self.assertIn("why too", self.shown(cookie))
        answer = self.post(cookie, "settle", self.form(cookie, settle="301+discard"))
        self.assertEqual(answer.line, "HTTP/1.1 403 Forbidden")
        self.assertIn(b"Sys.Incoming", answer.body)
        self.assertEqual(self.done, [])

    def test_bad_choices(self):
        cookie = self.operator()
        for choice in ("", "300", "x+resume", "300+keep", "-1+resume", "9999999999+resume"):
            answer = self.post(cookie, "settle", self.form(cookie, settle=choice))
            self.assertEqual(answer.line, "HTTP/1.1 400 Bad Request", choice)
        self.assertEqual(self.post(cookie, "settle", self.form(cookie, settle="999+resume")).line[9:12], "404")

    def test_drain(self):
        weak, cookie = self.log_in(WEAK), self.log_in()
        self.assertEqual(self.post(weak, "drain", self.form(weak)).line, "HTTP/1.1 403 Forbidden")
        self.assertEqual(self.post(cookie, "drain", self.form(cookie)).line, "HTTP/1.1 303 See Other")
        self.assertIn("takes no new tunnels", self.shown(cookie))
        self.assertEqual(self.done, [])
        self.clock.advance(1)
        self.assertEqual(self.done, ["drained"])
