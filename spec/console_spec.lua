--- The console: `ssh HOST` in a real terminal, which tmux is; and over `ssh -tt` with bytes that no terminal would send.

local korv = require "korv"
local support = require "spec.support"
local uv = require "luv"

local is_measured = support.patience == 1 -- not under a checker

local server, socket
local ESC = "\27"

local function quoted(argv)
  local words = {}
  for i, word in ipairs(argv) do words[i] = "'" .. word:gsub("'", "'\\''") .. "'" end
  return table.concat(words, " ")
end

local function ssh(at, ...)
  return support.ssh(at, { "-e", "none", ... }, "127.0.0.1")
end

-- tmux ----------------------------------------------------------------------------------------------------------------------------------

local Pane = {}
Pane.__index = Pane

local function tmux(...)
  local done = support.run { "tmux", "-S", socket, "-f", "/dev/null", ... }
  assert(done.code == 0, done:describe "failed")
  return done.stdout
end

-- One server for all panes, in the foreground: it ends with the spec.
local function start_tmux()
  socket = support.path "tmux"
  local running = support.start({ "tmux", "-S", socket, "-f", "/dev/null", "-u", "-D" }, { env = { LC_ALL = "C.UTF-8" } })
  assert(support.wait_for(function() return uv.fs_stat(socket) or running.code end) and not running.code, running:describe "did not start")
end

local panes = 0

-- A terminal with a console in it; afterwards it says with which status ssh has ended.
local function open(options)
  options = options or {}
  panes = panes + 1
  local self = setmetatable({ name = "pane" .. panes }, Pane)
  local command = ("TERM=%s %s; echo status $?; exec sleep 600"):format(options.term or "xterm-256color",
    quoted(ssh(options.server or server, table.unpack(options.ssh or {}))))
  tmux("new-session", "-d", "-s", self.name, "-x", tostring(options.columns or 100), "-y", "40", command)
  self:expect "korv> $"
  return self
end

function Pane:screen(...)
  return (tmux("capture-pane", "-p", "-t", self.name, ...):gsub("[ \n]+$", ""))
end

-- Waits until the screen, without the blanks at its end, has a pattern; returns what that captures. The prompt has no blank then.
function Pane:expect(pattern)
  pattern = pattern:gsub("> %$$", ">$")
  local screen
  local found = support.wait_for(function()
    screen = self:screen()
    return screen:find(pattern)
  end)
  if not found then error(("the screen has no %q:\n%s"):format(pattern, screen), 2) end
  return screen:match(pattern)
end

-- Keys by their names in tmux; what is none is text.
function Pane:press(...) tmux("send-keys", "-t", self.name, ...) end

function Pane:type(text) tmux("send-keys", "-t", self.name, "-l", text) end

-- Runs a command and waits for the next prompt; what stands between.
function Pane:run(command)
  tmux("clear-history", "-t", self.name)
  self:press "C-l"
  self:expect "^korv>$"
  self:type(command)
  self:press "Enter"
  return self:expect "^korv> [^\n]*\n(.*)\nkorv>$"
end

function Pane:cursor() return tonumber(tmux("display-message", "-p", "-t", self.name, "#{cursor_x}")) end

local function close(pane) tmux("kill-session", "-t", pane.name) end

-- Without a terminal ---------------------------------------------------------------------------------------------------------------

-- What a console sends to a terminal of that name while it reads an input, to its end.
local function converse(input, term, ...)
  return support.run(ssh(server, "-tt", ...), { stdin = input, env = { TERM = term or "xterm" }, timeout = 60 })
end

-- The server's memory, once it has settled.
local function settled()
  local last, same = 0, 0
  support.wait_for(function()
    if same == 25 then return true end
    local now = server:rss_bytes()
    same = math.abs(now - last) < 256 * 1024 and same + 1 or 0
    if same == 0 then last = now end
    uv.sleep(20)
  end)
  assert(same == 25, "it takes more and more memory")
  return last
end

setup(function()
  server = support.serve "spec/data/console.lua"
  start_tmux()
end)
teardown(support.finish)

describe("the console in a terminal", function()
  local pane

  setup(function() pane = open { columns = 200 } end)
  teardown(function() close(pane) end)

  it("greets", function()
    local screen = pane:screen()
    local first, second, third = screen:match "^([^\n]+)\n([^\n]+)\n([^\n]+)\nkorv>$"
    assert.equal(("korv %s on %s, port %d"):format(korv.version, uv.os_gethostname(), server.port), first)
    assert.equal("You are client, " .. support.fingerprint(support.key "client"), second)
    assert.matches("^%d%d endpoints for you: help ", third) -- of spec/data/console.lua and korv's own
  end)

  it("shows an answer, its code and its time", function()
    assert.matches('^{\n  "list": %[\n    1,\n    true\n  %],\n  "msg": "Hello World!"\n}\n200 in %d+%.%d+ m?s$', pane:run "GET /hello")
    assert.matches("^204 in %d+%.%d+ m?s$", pane:run "GET /nothing")
    assert.matches("^404 in %d+%.%d+ m?s$", pane:run "DELETE /nowhere")
    assert.matches("\n200 in %d+%.%d+ s$", pane:run "GET /wait?s=1.1")
  end)

  it("takes verbs in any case, blanks around, a query and a body", function()
    assert.matches('"q": "1 2"', pane:run "  get   /echo?q=1+2  ")
    assert.matches('^%[\n  1\n%]\n200', pane:run "Update /echo [1]")
    assert.matches('"body": {\n    "age": 7\n', pane:run [[STORE /users/ann '{"age": 7}']])
    assert.matches('"body": 9007199254740993,', pane:run "GET /echo 9007199254740993")
  end)

  it("says what is wrong with a command, and asks nothing", function()
    assert.matches("^unknown: uname%. A command begins with GET", pane:run "uname -a")
    assert.matches("^GET of what%?", pane:run "GET")
    assert.matches("^a resource begins with /: GET /hello$", pane:run "GET hello")
    assert.matches("^STORE needs a body, which is JSON, behind the resource: STORE /users/ann {", pane:run "STORE /users/ann")
    assert.matches("^the body is not JSON: line 1, column 2: expected a name", pane:run "STORE /users/ann {a: 1}")
    assert.matches("^the body is not JSON: .*end of a string", pane:run 'STORE /users/ann {"a')
    assert.matches("^the body is not JSON: .*expected the end", pane:run 'STORE /users/ann 1,"id":9')
  end)

  it("edits a line", function()
    pane:press "C-l"
    pane:expect "^korv>$"
    pane:type "ET /hellx"
    pane:press("Home", "G", "End", "BSpace", "o", "M-b", "C-k", "C-y", "Left", "Right", "C-e", "C-t", "C-t", "Enter")
    pane:expect 'korv> GET /hello\n{\n.*\n200 in [^\n]+\nkorv> $'
  end)

  it("knows how wide characters are", function()
    pane:press("C-u")
    pane:type "日本e\u{301}"
    pane:expect "日本e\u{301}$"
    assert.equal(#"korv> " + 5, pane:cursor())
    pane:press("Left", "Left")
    assert.is_true(support.wait_for(function() return pane:cursor() == #"korv> " + 2 end))
    pane:press("C-u")
    pane:expect "korv> 本e\u{301}$"
    pane:press("C-e", "C-u")
    assert.matches('"name": "日本 🙂"', pane:run "GET /users/日本%20🙂")
  end)

  it("remembers lines, and searches them", function()
    pane:run "GET /nothing"
    pane:run "GET /usage"
    pane:press("Up", "Up", "Enter")
    pane:expect "\nkorv> GET /nothing\n204 in [^\n]+\nkorv> $"
    pane:press("C-r")
    pane:type "usa"
    pane:expect "%(history: usa%) GET /usage$"
    pane:press "Enter"
    pane:expect "\nkorv> GET /usage\n200 in [^\n]+\nkorv> $"
  end)

  it("completes verbs and resources", function()
    pane:press("C-l")
    pane:type "g\t/u\t"
    pane:expect "^korv> GET /us$"
    pane:press "Tab"
    pane:expect "^korv> GET /us\n/usage  +/users  +/users/:name  +/users/:name/mail\nkorv> GET /us$"
    pane:type "ers/ann/\t"
    pane:expect "korv> GET /users/ann/mail$"
    pane:press("C-u", "C-l")
    pane:type "s\t\t"
    pane:expect "^korv> STORE /users/$"
    pane:press("C-u", "C-l", "Tab")
    pane:expect "^korv>\nGET  +STORE  +UPDATE  +DELETE  +help  +exit  +quit\nkorv> $"
    pane:type "GET /wa\t"
    pane:expect "korv> GET /wait$"
    assert.equal(#"korv> GET /wait ", pane:cursor())
    pane:press("C-u")
  end)

  it("helps", function()
    local text = pane:run "help"
    assert.matches("^VERB RESOURCE %[BODY%]", text)
    assert.matches("\n  GET     /hello +Says hello%.\n", text)
    assert.matches("\n  STORE   /users/:name\n", text)
    assert.matches("\n  GET     /nasty +doc \\x1b%[31m\\xe2\\x80\\xae\n", text)
    assert.equal("  GET     /users             Lists users.\n  GET     /users/:name\n  STORE   /users/:name\n  GET     /users/:name/mail",
      pane:run "help /users")
    assert.equal("no endpoint's resource begins with '/x'", pane:run "help /x")
  end)

  it("goes on in the next line where JSON is incomplete, until Ctrl-C", function()
    pane:press("C-l")
    pane:type 'UPDATE /echo {"a":\n[1,\n2]}\n'
    pane:expect '^korv> UPDATE /echo {"a":\n  %.%.%. %[1,\n  %.%.%. 2%]}\n{\n  "a": %[\n    1,\n    2\n  %]\n}\n200 in [^\n]+\nkorv> $'
    pane:press("C-l", "Up")
    pane:expect '^korv> UPDATE /echo {"a":↵%[1,↵2%]}$'
    pane:press "C-c"
    pane:type "UPDATE /echo [\n"
    pane:expect "%.%.%.$"
    pane:press "C-c"
    pane:expect "%.%.%. ^C\nkorv> $"
    assert.matches("^204", pane:run "GET /nothing")
  end)

  it("takes a paste as text, and runs it when told to", function()
    pane:press "C-l"
    pane:expect "^korv>$"
    tmux("set-buffer", 'UPDATE /echo {\n\t"a": 1\n}\n')
    tmux("paste-buffer", "-p", "-t", pane.name)
    pane:expect '^korv> UPDATE /echo {↵ "a": 1↵}↵$'
    pane:press "Enter"
    pane:expect '^korv> UPDATE /echo {\n "a": 1\n}\n\n{\n  "a": 1\n}\n200 in [^\n]+\nkorv> $'
  end)

  it("scrolls a stream until Ctrl-C, and cancels it", function()
    pane:press "C-l"
    pane:type "GET /ticks\n"
    pane:expect '\n{"tick": 3}\n'
    pane:type "GET /hello\n" -- goes with it
    pane:press "C-c"
    local count = pane:expect "{\"tick\": (%d+)}\n^C\n499 in %d+%.%d+ m?s, %d+ items\nkorv> $"
    assert.is_true(tonumber(count) >= 3)
    assert.matches('"ended": 1', pane:run "GET /ended")
    assert.matches('^{"tick": 1}\n{"tick": 2}\n200 in %d+%.%d+ m?s, 2 items$', pane:run "GET /ticks?n=2")
  end)

  it("cancels a request, and only that", function()
    pane:press "C-l"
    pane:type "GET /wait?s=60\n"
    pane:press "C-c"
    pane:expect "^korv> GET /wait%?s=60\n^C\n499 in %d+%.%d+ m?s\nkorv> $"
    pane:type "abc"
    pane:press "C-c"
    pane:expect "\nkorv> abc^C\nkorv> $"
  end)

  it("keeps what is typed while a request runs", function()
    pane:press "C-l"
    pane:type 'GET /wait?s=0.3\nGET /nothing\nUPDATE /echo [\n1]\nhal'
    pane:expect "^korv> GET /wait%?s=0%.3\n%d+\n200 in [^\n]+\nkorv> GET /nothing\n204 in [^\n]+\nkorv> UPDATE /echo %["
    pane:expect "\n  %.%.%. 1%]\n%[\n  1\n%]\n200 in [^\n]+\nkorv> hal$"
    pane:press "C-u"
  end)

  it("fits the window, and follows its size", function()
    pane:press "C-l"
    tmux("resize-window", "-t", pane.name, "-x", "30", "-y", "20")
    pane:type "GET /echo?q=abcdefghijklmnopqrstuvwxyz0123456789"
    local tail = pane:expect "^korv> <([^\n]+)$"
    assert.matches("6789$", tail)
    assert.is_true(#tail <= 22)
    tmux("resize-window", "-t", pane.name, "-x", "200", "-y", "40")
    pane:expect "korv> GET /echo%?q=abcdefghijklmnopqrstuvwxyz0123456789$"
    pane:press "Enter"
    pane:expect '"q": "abcdefghijklmnopqrstuvwxyz0123456789"'
  end)

  it("shows nothing that steers the terminal", function()
    local safe = "esc \\u001b]0;x\\u0007 del \\u007f c1 \\u009b31m bidi \\u202e mark \\u200f end"
    assert.equal(('{\n  "%s": "%s"\n}'):format(safe, safe), (pane:run("GET /nasty"):gsub("\n200[^\n]*$", "")))
    assert.equal(('"%s"'):format(safe), (pane:run("GET /nasty/stream"):gsub("\n200[^\n]*$", "")))
  end)

  it("shows the beginning of a long body", function()
    pane:type "GET /big?n=100000\n"
    pane:expect "xx… %(100002 bytes%)\n200 in [^\n]+\nkorv> $"
  end)

  it("has colours, but not where NO_COLOR or the terminal's name says so", function()
    pane:run "GET /hello"
    assert.matches('%[36m"msg".-%[32m"Hello World!".*%[32m200 in', pane:screen "-e")
    pane:run "GET /nowhere"
    assert.matches("%[31m404 in", pane:screen "-e")
    for _, options in ipairs { { ssh = { "-o", "SetEnv=NO_COLOR=1" } }, { term = "dumb" } } do
      local plain = open(options)
      plain:type "GET /hello\n"
      plain:expect "200 in [^\n]+\nkorv> $"
      assert.is_nil(plain:screen("-e"):find(ESC, 1, true))
      close(plain)
    end
  end)
end)

describe("a console ends", function()
  for name, keys in pairs { exit = { "exit", "Enter" }, quit = { "QUIT", "Enter" }, ["Ctrl-D"] = { "C-d" } } do
    it("with status 0 by " .. name, function()
      local pane = open()
      pane:press(table.unpack(keys))
      pane:expect "\nstatus 0$"
      close(pane)
    end)
  end

  it("with status 0 at the end of its input, once all is answered", function()
    local done = converse "GET /wait?s=0.2\nGET /hello\n"
    assert.equal(0, done.code, done.stderr)
    assert.matches("Hello World!", done.stdout)
    assert.equal(ESC .. "[?2004l", done.stdout:sub(-8))
  end)

  it("when the server stops, and is told so", function()
    local stopping = support.serve "spec/data/console.lua"
    local idle, busy = open { server = stopping }, open { server = stopping }
    busy:type "GET /wait?s=3\n"
    busy:expect "s=3$"
    uv.kill(stopping.pid, "sigterm")
    idle:expect "\nkorv>\nThe server is stopping%.\n[^\n]*\nstatus 5$" -- between them ssh says that the connection is closed
    busy:expect "\n%d+\n200 in 3%.%d+ s\nkorv>\nThe server is stopping%.\n[^\n]*\nstatus 5$"
    stopping.must_end_well = nil
    assert.equal(0, stopping:wait().code)
    close(idle)
    close(busy)
  end)

  it("with its connection, and cancels what it had asked", function()
    local before = tonumber(converse("GET /ended\n", "dumb").stdout:match '"ended": (%d+)')
    local pane = open()
    pane:type "GET /ticks\n"
    pane:expect '"tick": 2'
    close(pane)
    assert.is_true(support.wait_for(function()
      return tonumber(converse("GET /ended\n", "dumb").stdout:match '"ended": (%d+)') == before + 1
    end))
  end)
end)

describe("a console without a person", function()
  it("sends a dumb terminal no control sequences", function()
    for _, term in ipairs { "dumb", "", "unknown" } do
      local done = converse("GET /helx\8lo\nGET /n\t\1\2\12\16\nhelp /users\nGET /nasty\nGET /nasty/stream\nexit\n", term)
      assert.equal(0, done.code, done.stderr)
      assert.matches("Hello World!", done.stdout)
      assert.is_nil(done.stdout:gsub("\r\n", ""):find "[%z\1-\6\8-\31\127\x80-\x9f]", done.stdout)
    end
  end)

  it("heeds a Ctrl-C that comes together with the command", function()
    local done = converse("GET /wait?s=60\nGET /nothing\n\3GET /hello\nexit\n", "dumb")
    assert.matches("\r\n%^C\r\n499 in .*Hello World!", done.stdout)
    assert.is_nil(done.stdout:find("204 in", 1, true))
  end)

  it("refuses a line over its limit, and goes on", function()
    local long = 'UPDATE /echo "' .. ("x"):rep(70000) .. '"\n'
    local done = converse(long .. "UPDATE /echo [\n" .. ('"' .. ("x"):rep(30000) .. '",\n'):rep(3) .. "\3GET /hello\nexit\n", "dumb")
    local _, refused = done.stdout:gsub("a command takes at most 65536 bytes: nothing was sent", "")
    assert.same({ 0, 2 }, { done.code, refused })
    assert.matches("Hello World!", done.stdout)
  end)

  it("takes its time for no line, whatever blanks are in it", function() -- a careless pattern takes half a minute for one
    local began = uv.hrtime()
    local done = converse(("GET a%sb\n"):format((" "):rep(65000)):rep(2) .. "GET /hello\nexit\n", "dumb")
    assert.equal(0, done.code, done.stderr)
    assert.matches("Hello World!", done.stdout)
    assert.is_true(uv.hrtime() - began < 10e9 * support.patience)
  end)

  it("bears megabytes without a line's end, and bytes of chance", function()
    local before = server:rss_bytes()
    local done = converse(("x"):rep(4 * 1024 * 1024) .. "\3GET /hello\nexit\n")
    assert.equal(0, done.code)
    assert.matches("Hello World!", done.stdout)
    local random, bytes = 1, {}
    for i = 1, 200000 do
      random = (random * 1103515245 + 12345) % 2147483648
      bytes[i] = string.char(random // 65536 % 256)
    end
    assert.equal(0, converse(table.concat(bytes) .. "\3\27[201~\3\3exit\nexit\n").code)
    assert.is_true(not is_measured or server:rss_bytes() < before + 32 * 1024 * 1024)
  end)

  it("reads no more than is typed ahead while a request runs", function()
    local before = server:rss_bytes()
    local eager = support.start(ssh(server, "-tt"), { stdin = "GET /wait?s=60\n" .. ("GET /hello\n"):rep(2 * 1024 * 1024),
      env = { TERM = "xterm" } })
    local after = settled()
    assert.is_true(not is_measured or after < before + 16 * 1024 * 1024)
    eager:kill()
  end)

  it("reads no more than it can show to somebody who does not read", function()
    local before = server:rss_bytes()
    local stuck = {}
    for i, input in ipairs { "GET /flood\n", ("GET /big?n=60000\n"):rep(20000) } do
      stuck[i] = support.start(ssh(server, "-tt"), { stdin = input, env = { TERM = "xterm" } })
      assert(support.wait_for(function() return #stuck[i].stdout > 100000 end), "nothing comes")
      uv.kill(stuck[i].pid, "sigstop")
    end
    local last = settled()
    assert.is_true(not is_measured or last < before + 16 * 1024 * 1024, ("%.0f KiB more"):format((last - before) / 1024))
    assert.matches("Hello World!", converse("GET /hello\nexit\n", "dumb").stdout)
    for _, process in ipairs(stuck) do process:kill() end
  end)

  it("takes little memory while it is idle", function()
    local watcher = support.start(ssh(server, "-tt"), { stdin = true, env = { TERM = "dumb" } })
    local function holdings()
      watcher.stdout = ""
      watcher:write "GET /holdings\n"
      assert(support.wait_for(function() return watcher.stdout:find "200 in" end), watcher:describe "does not answer")
      return tonumber(watcher.stdout:match '"bytes": (%d+)')
    end
    holdings()
    local before, consoles = holdings(), {}
    for i = 1, 10 do
      consoles[i] = support.start(ssh(server, "-tt"), { stdin = true, env = { TERM = "xterm" } })
      assert(support.wait_for(function() return consoles[i].stdout:find("korv> ", 1, true) end), consoles[i]:describe "has no prompt")
    end
    local each = (holdings() - before) / #consoles
    for _, console in ipairs(consoles) do console:write "exit\n" end
    for _, console in ipairs(consoles) do assert.equal(0, console:wait().code) end
    assert.is_true(each < 10 * 1024, ("%.0f bytes each"):format(each))
    assert.is_true(support.wait_for(function() return holdings() < before + 10 * 1024 end))
    watcher:write "exit\n"
    assert.equal(0, watcher:wait().code)
  end)
end)
