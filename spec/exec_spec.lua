--- `ssh HOST VERB RESOURCE [BODY]` with OpenSSH: what is asked, what is printed and where, exit statuses, input, streams, cancelling,
-- terminals, help, the ways in that can be closed, and the endpoints that tell of the server.

local asked = require "spec.asked"
local cjson = require "cjson"
local korv = require "korv"
local pair = require "spec.pair"
local support = require "spec.support"

local MIB = 1024 * 1024

local gates = {} -- of /gate: functions that let it go on
local server

local function add_endpoints(app)
  app:get("/hello", { doc = "Says\nhello" }, function() return 200, { msg = "Hello World!" } end)
  for _, verb in ipairs { "GET", "STORE", "UPDATE", "DELETE" } do
    app:add_callback(verb, "/echo", function(request) return 200, { verb = request.verb, body = request.body } end)
  end
  app:get("/query", function(request) return 200, request.query end)
  app:get("/spin", function() while true do end end) -- luacheck: ignore 542
  app:get("/steering", { doc = "one\27[31m\194\155two" }, function() return 200, "\194\155\127" end)
  app:get("/gate", function(request)
    request:send { n = 1 }
    korv.await(function(resume) gates[#gates + 1] = resume end)
    request:send { n = 2 }
    return 200
  end)
  app:get("/ends", function(request)
    request:send(1)
    return 200, "all"
  end)
  app:get("/flood", function(request)
    for i = 1, 1000 do request:send(("%04d"):format(i):rep(1024)) end
    return 200
  end)
  return asked.add_endpoints(app)
end

local function new(options) return pair.listen(add_endpoints(pair.new_server(options))) end

-- OpenSSH: options, then the command's words.
local function ssh(at, options, ...) return support.ssh(at, { "-o", "LogLevel=ERROR", table.unpack(options) }, "127.0.0.1", "--", ...) end

-- Runs a command and returns its status, stdout and stderr as a list.
local function run(command, stdin, at)
  local done = support.run(ssh(at or server, {}, command), { stdin = stdin })
  return { done.code, done.stdout, done.stderr }
end

local function start(options, command, at)
  return support.start(ssh(at or server, options, command), { stdin = true, env = { TERM = "dumb" } })
end

-- At a terminal: what its window shows, after the ssh has ended.
local function at_terminal(command, env)
  local process = support.start(ssh(server, { "-tt", "-o", "SendEnv=NO_COLOR" }, command), { stdin = true, env = env or { TERM = "dumb" } })
  return process:wait()
end

-- Another client; see spec/peers/exec_peer.py.
local function start_peer(at, task, command)
  return support.start({ support.python, support.root .. "/spec/peers/exec_peer.py", task, tostring(at.port), support.key "client",
    command }, { stdin = true })
end

local function appears(process, stream, text)
  pair.wait_for(function() return process[stream]:find(text, 1, true) end, function() return process:describe("does not say " .. text) end)
end

local function bad_request(detail) return ('400 {"message":"Unable to process request","detail":"%s"}\n'):format(detail) end

describe("ssh HOST VERB RESOURCE [BODY]", function()
  setup(function()
    pair.begin()
    server = new()
  end)
  before_each(function() gates, asked.left = {}, 0 end)
  teardown(pair.finish)

  describe("asks and prints", function()
    it("a body on stdout, a line", function() assert.same({ 0, '{"msg":"Hello World!"}\n', "" }, run "GET /hello") end)

    it("whatever a body is", function()
      for _, body in ipairs { "null", "true", "false", "7", "9007199254740993", "2.0", '"text"', '"ü\\u0000\\n"', "[]", "{}", "[[],{}]" } do
        assert.same({ 0, body .. "\n", "" }, run("STORE /same " .. body))
      end
    end)

    it("verbs in any case, a query, white space around", function()
      assert.same({ 0, '{"verb":"DELETE"}\n', "" }, run "  dElEtE   /echo  ")
      local found = run "get /query?q=a+b&limit=10"
      assert.same({ 0, { q = "a b", limit = "10" } }, { found[1], cjson.decode(found[2]) })
    end)

    it("a body that is the rest of the line, in one pair of single quotes or none", function()
      for _, body in ipairs { '{"a": [1,  2]}', "'{\"a\": [1,  2]}'", '{"a":\n[1,2]}' } do
        assert.same({ 0, '{"a":[1,2]}\n', "" }, run("STORE /same " .. body))
      end
      assert.same({ 0, '"it\'s"\n', "" }, run [[STORE /same '"it's"']])
      assert.same({ 0, '"a  \' b"\n', "" }, run [[STORE /same "a  ' b"]])
    end)

    it("what is no success on stderr, with the first digit of its code as status", function()
      for _, code in ipairs { 100, 302, 400, 404, 418, 503, 599 } do
        assert.same({ code // 100, "", ('%d {"code":"%d"}\n'):format(code, code) }, run("GET /code/" .. code))
      end
      assert.same({ 0, '{"code":"204"}\n', "" }, run "GET /code/204")
      assert.same({ 4, "", "404 null\n" }, run "GET /nowhere")
    end)

    it("an endpoint that computes without end: 500", function()
      local code, out, err = table.unpack(run "GET /spin")
      assert.same({ 5, "" }, { code, out })
      assert.truthy(err:find '^500 {.*"message":"[^"]*stopped after 1 s', err)
    end)

    it("the same log line as a message", function()
      run "GET /hello"
      pair.wait_for_log "info GET /hello 200 .* client SHA256:"
    end)
  end)

  describe("reads a body", function()
    it("from stdin for STORE and UPDATE, over several lines, to its end", function()
      for _, verb in ipairs { "STORE", "UPDATE" } do
        local process = start({}, verb .. " /echo")
        process:write '{"a":\n'
        process:write "\n[1\n,2]}"
        process:close_stdin()
        local done = process:wait()
        assert.same({ 0, "" }, { done.code, done.stderr })
        assert.same({ verb = verb, body = { a = { 1, 2 } } }, cjson.decode(done.stdout))
      end
    end)

    it("from stdin for any verb where it is -", function()
      for _, verb in ipairs { "GET", "STORE", "UPDATE", "DELETE" } do
        local done = run(verb .. " /echo -", "[7]\n")
        assert.same({ verb = verb, body = { 7 } }, cjson.decode(done[2]))
      end
    end)

    it("not from stdin for GET and DELETE", function()
      for _, verb in ipairs { "GET", "DELETE" } do
        local process = start({}, verb .. " /echo")
        process:write "[7]\n"
        process:wait()
        assert.same({ 0, ('{"verb":"%s"}\n'):format(verb) }, { process.code, process.stdout })
      end
    end)

    it("an input without anything in it is no body", function()
      assert.same({ 4, "", "400 {\"message\":\"Missing 'body'\"}\n" }, run("STORE /echo", " \n"))
      assert.same({ 0, '{"verb":"GET"}\n', "" }, run("GET /echo -", ""))
    end)

    it("that is no JSON: 400 and why", function()
      local quotes = " (text needs quotes of its own: '\\\"text\\\"')"
      local hint = "the body is not JSON: line 1, column 2: expected a name in double quotes, found 'a'" .. quotes
      assert.same({ 4, "", bad_request(hint) }, run "STORE /echo {age: 7}")
      assert.same({ 4, "", bad_request(hint) }, run("STORE /echo", "{age: 7}"))
      for _, body in ipairs { "''", "{", '1,"verb":"DELETE"', '1}\n{"id":2', '"\xff"', "nope", ("["):rep(200) .. ("]"):rep(200) } do
        local code, out, err = table.unpack(run("GET /echo " .. body))
        assert.same({ 4, "" }, { code, out }, body)
        assert.truthy(err:find '^400 {"message":"Unable to process request","detail":".*"}\n$', err)
      end
    end)

    it("a resource that is no UTF-8: 400", function()
      local code, _, err = table.unpack(run "GET /caf\xe9")
      assert.equal(4, code)
      assert.truthy(err:find('"detail":"the resource: ', 1, true), err)
    end)

    it("up to the limit of messages; past it: 413", function()
      local small = new { max_message_bytes = 4096 }
      assert.same({ 0, "3900\n", "" }, run("STORE /length", '"' .. ("x"):rep(3900) .. '"', small))
      local refused = { 4, "", '413 {"message":"Message too large","detail":"a message has at most 4096 bytes"}\n' }
      assert.same(refused, run("STORE /length", '"' .. ("x"):rep(4090) .. '"', small))
      assert.same(refused, run('STORE /length "' .. ("x"):rep(4090) .. '"', nil, small))
      local process = start({}, "STORE /length", small)
      process:write(("x"):rep(8 * MIB)) -- nobody reads all of it
      process:wait()
      assert.same(refused, { process.code, process.stdout, process.stderr })
    end)
  end)

  describe("carries", function()
    it("8 MiB in", function() assert.same({ 0, 8 * MIB .. "\n", "" }, run("STORE /length", '"' .. ("x"):rep(8 * MIB) .. '"')) end)

    it("8 MiB out", function()
      local code, out, err = table.unpack(run("GET /long " .. 8 * MIB))
      assert.same({ 0, 8 * MIB + 3, "" }, { code, #out, err })
      assert.is_true(out == '"' .. ("x"):rep(8 * MIB) .. '"\n')
    end)

    it("8 MiB out of a failure, to stderr", function()
      local code, out, err = table.unpack(run("GET /fails " .. 8 * MIB))
      assert.same({ 5, "", 8 * MIB + 7 }, { code, out, #err })
    end)
  end)

  describe("streams", function()
    it("print a line an item, as they come", function()
      local process = start({}, "GET /gate")
      assert.equal('{"n":1}', process:line())
      assert.is_nil(process.code)
      gates[1]()
      assert.equal('{"n":2}', process:line())
      process:wait()
      assert.same({ 0, "", "" }, { process.code, process.stdout, process.stderr })
    end)

    it("end with what the endpoint returned, if anything", function() assert.same({ 0, '1\n"all"\n', "" }, run "GET /ends") end)

    it("end with a failure", function() assert.same({ 5, "1\n", '507 "full"\n' }, run "GET /breaks") end)

    it("wait for a slow reader, and lose nothing", function()
      local argv = ssh(server, {}, "GET /flood")
      for i, word in ipairs(argv) do argv[i] = "'" .. word .. "'" end
      local done = support.run { "sh", "-c", table.concat(argv, " ") .. " | { sleep 0.3; cat; }" }
      local count = 0
      for line in done.stdout:gmatch "[^\n]+" do
        count = count + 1
        assert.equal(('"%04d"'):format(count), line:sub(1, 5) .. '"')
      end
      assert.equal(1000, count)
    end)
  end)

  describe("is cancelled", function()
    local function is_left() return asked.left == 1 end

    it("when ssh ends", function()
      local process = start({}, "GET /forever")
      assert.equal('"begun"', process:line())
      process:kill()
      pair.wait_for(is_left)
    end)

    local function at_ctrl_c(at)
      local process = start({ "-tt" }, "GET /forever", at)
      appears(process, "stdout", "begun")
      process:write "\3"
      process:wait()
      assert.same({ 4, '499 {"message":"Cancelled"}\r\n' }, { process.code, process.stderr })
    end

    it("by Ctrl-C at a terminal", function()
      at_ctrl_c(server)
      assert.equal(1, asked.left)
    end)

    it("by Ctrl-C though its channel is at its limit of requests", function()
      at_ctrl_c(new { max_channel_in_flight = 1 })
      pair.wait_for(is_left)
    end)

    it("by a signal of SSH's", function()
      local done = start_peer(server, "signal", "GET /forever"):wait()
      assert.same({ status = 4, stdout = '"begun"\n', stderr = '499 {"message":"Cancelled"}\n' }, cjson.decode(done.stdout))
      assert.equal(1, asked.left)
    end)

    it("by Ctrl-C before it has been asked", function()
      local process = start({ "-tt" }, "STORE /same")
      appears(process, "stderr", "Ctrl-D")
      process:write "{}\3"
      process:wait()
      assert.same({ 4, "{}" }, { process.code, process.stdout })
      assert.truthy(process.stderr:find('499 {"message":"Cancelled"}', 1, true))
    end)
  end)

  describe("while the server stops", function()
    it("a command that waits for its input is told 503, one that runs is answered", function()
      local stopping = new()
      local waits, runs = start({ "-tt" }, "STORE /same", stopping), start({}, "GET /gate", stopping)
      assert.equal('{"n":1}', runs:line())
      appears(waits, "stderr", "Ctrl-D")
      stopping:drain(10)
      assert.equal(5, waits:wait().code)
      assert.truthy(waits.stderr:find('\n503 {"message":"The server is stopping"}\r\n', 1, true), waits.stderr)
      gates[1]()
      assert.same({ 0, '{"n":2}\n' }, { runs:wait().code, runs.stdout })
    end)

    it("a command that comes then is told 503, whether it would wait for its input or not", function()
      for _, command in ipairs { "STORE /same", "GET /hello" } do
        local stopping = new()
        local late = start_peer(stopping, "late", command)
        assert.equal("open", late:line())
        stopping:drain(10)
        late:write "go\n"
        local told = cjson.decode(late:wait().stdout)
        assert.same({ status = 5, stdout = "", stderr = '503 {"message":"The server is stopping"}\n' }, told)
      end
    end)
  end)

  describe("at a terminal", function()
    it("prints JSON for people, its lines ended by CR and LF", function()
      local done = at_terminal "GET /hello"
      assert.same({ 0, '{\r\n  "msg": "Hello World!"\r\n}\r\n' }, { done.code, done.stdout })
    end)

    it("prints failures on one line", function()
      local done = at_terminal "GET /nowhere"
      assert.same({ 4, "404 null\r\n" }, { done.code, done.stderr })
    end)

    it("is not steered by what it prints", function()
      assert.equal('"\\u009b\\u007f"\r\n', at_terminal("GET /steering").stdout)
      assert.equal('"\194\155\127"\n', run("GET /steering")[2]) -- for programs: as it is by message
    end)

    it("prints what is too long for people as it is", function()
      assert.same({ 0, 200 * 1024 + 4 }, { at_terminal("GET /long " .. 200 * 1024).code, #at_terminal("GET /long " .. 200 * 1024).stdout })
    end)

    it("has colours, unless NO_COLOR or its kind say otherwise", function()
      assert.truthy(at_terminal("GET /hello", { TERM = "xterm" }).stdout:find "\27")
      for _, env in ipairs { { TERM = "dumb" }, { TERM = "" }, { TERM = "xterm", NO_COLOR = "1" } } do
        assert.is_nil(at_terminal("GET /hello", env).stdout:find "\27")
      end
    end)

    it("shows what is typed, until Ctrl-D", function()
      local process = start({ "-tt" }, "STORE /same")
      appears(process, "stderr", "Ctrl-D")
      process:write '{"a":\r[1x\127]}\4'
      process:wait()
      assert.same({ 0, '{"a":\r\n[1x\b \b]}{\r\n  "a": [\r\n    1\r\n  ]\r\n}\r\n' }, { process.code, process.stdout })
    end)
  end)

  describe("of another kind is not understood", function()
    local function usage(problem)
      return { 64, "", ("korv: %s\nusage: ssh HOST VERB RESOURCE [BODY]    VERB is GET, STORE, UPDATE or DELETE\n%s\n"):format(problem,
        "       ssh HOST help [RESOURCE]") }
    end

    it("and says what is", function()
      for _, word in ipairs { "scp", "uname", "sftp-server", "git-upload-pack", "/usr/lib/openssh/sftp-server", "GETS" } do
        assert.same(usage(("there is no command '%s' here"):format(word)), run(word .. " -t /hello"))
      end
    end)

    it("and says what to write instead", function()
      assert.same(usage "GET needs a resource: GET /hello", run "get")
      assert.same(usage "'hello' does not begin with '/': did you mean '/hello'?", run "store hello")
      assert.same(usage "'users' does not begin with '/': did you mean '/users'?", run "help users")
      assert.same(usage "'POST' is no verb: GET, STORE, UPDATE or DELETE; did you mean STORE?", run "post /users")
      assert.same(usage "nothing was asked for", run " ")
    end)

    it("and what is repeated of it steers no terminal, and is short", function()
      assert.same(usage "there is no command '\\x1b[31m\\x9b' here", run "\27[31m\x9b")
      assert.same(usage(("there is no command '%s…' here"):format(("x"):rep(60))), run(("x"):rep(50000)))
    end)

    it("however long it is", function() -- in time: a careless pattern takes minutes for it
      assert.same({ 4, "" }, { run("GET /echo" .. (" "):rep(50000) .. "x" .. (" "):rep(50000) .. "x")[1], "" })
    end)
  end)

  describe("help", function()
    it("says who you are, how to call, and what there is", function()
      for _, word in ipairs { "help", "HELP", "--help", "-h" } do
        local code, out, err = table.unpack(run(word))
        assert.same({ 0, "" }, { code, err })
        assert.truthy(out:find("You are client (" .. support.fingerprint(support.key "client") .. ")", 1, true), out)
        assert.truthy(out:find("echo '{\"age\": 7}' | ssh HOST STORE /users/ann\n", 1, true), out)
        assert.truthy(out:find("\n  GET     /hello           Says hello\n", 1, true), out)
        assert.truthy(out:find("\n  DELETE  /echo\n", 1, true), out)
      end
    end)

    it("lists what begins with a resource", function()
      assert.same({ 0, "  GET     /hello  Says hello\n", "" }, run "help /hell")
      assert.same({ 4, "", "korv: no endpoint begins with '/nope': help lists all\n" }, run "help /nope")
    end)

    it("has no doc that steers a terminal", function()
      assert.equal("  GET     /steering  one\\x1b[31m\\xc2\\x9btwo\n", run("help /steering")[2])
      assert.equal("  GET     /steering  one\\x1b[31m\\xc2\\x9btwo\r\n", at_terminal("help /steering").stdout)
    end)
  end)
end)

describe("a way in that is closed", function()
  local HELLO = '{"id": 1, "verb": "GET", "resource": "/hello"}\n'
  local ENDS = { -- of each way: options and command, and what OpenSSH says where it is refused
    exec = { {}, "GET /hello", "exec request failed on channel 0" },
    subsystem = { { "-s" }, "korv", "subsystem request failed on channel 0" },
    tcpip = { { "-W", "api:1" }, nil, "stdio forwarding failed" },
    shell = { {}, nil, "shell request failed on channel 0" },
  }

  setup(pair.begin)
  teardown(pair.finish)

  local function try(at, way)
    local options, command = ENDS[way][1], ENDS[way][2]
    return support.run(ssh(at, options, command), { stdin = HELLO })
  end

  for closed, how in pairs(ENDS) do
    it(closed .. " is refused, the others are open", function()
      local at = new { ways = { [closed] = false } }
      for way in pairs(ENDS) do
        local done = try(at, way)
        if way == closed then
          assert.same({ 255, "" }, { done.code, done.stdout })
          assert.truthy(done.stderr:find(how[3], 1, true), done.stderr)
        else
          assert.truthy(done.stdout:find('{"msg":"Hello World!"}', 1, true), done:describe(way))
        end
      end
    end)
  end

  it("leaves nothing of what was asked of it to another way that its channel takes then", function()
    local process = start_peer(new { ways = { exec = false } }, "again", "DELETE /echo")
    process:write "GET /hello\r\4"
    process:close_stdin()
    assert.equal("refused", process:line())
    assert.equal("", process:wait().stderr)
    local told = cjson.decode(process.stdout)
    assert.truthy(told.stdout:find('korv> GET /hello\r\n{\r\n  "msg": "Hello World!"\r\n}', 1, true), told.stdout)
    assert.is_nil(told.stdout:find '"verb"')
  end)

  it("has a name", function()
    pair.must_raise("korv.server: ways: unknown option 'exce'", function() korv.server { ways = { exce = false } } end)
    pair.must_raise("korv.server: ways: exec must be a boolean", function() korv.server { ways = { exec = 0 } } end)
  end)
end)
