--- Korv with the peers that people have: OpenSSH's client, and the first korv, in Python on asyncssh (spec/peers/python_korv.py).

local cjson = require "cjson"
local raw_channel = require "spec.peers.raw_channel"
local support = require "spec.support"

local text = raw_channel.text

local function lines_of(output)
  local lines = {}
  for line in output:gmatch "[^\n]+" do
    lines[#lines + 1] = line
  end
  return lines
end

local function ssh_as(key, server, ...)
  return support.ssh(server, { key = support.key(key), "-o", "LogLevel=ERROR" }, ...)
end

local function ssh(server, ...)
  return ssh_as("client", server, ...)
end

local function messages(task, bytes)
  local done = support.run({ support.python, support.root .. "/spec/peers/messages.py", task }, { stdin = bytes })
  assert(done.code == 0, done.stderr)
  return done.stdout
end

-- The responses in a stream: their code and body by request_id, all as JSON text.
local function responses_in(bytes, encoding)
  local found = {}
  for _, line in ipairs(lines_of(messages("unpack", bytes))) do
    local message = cjson.decode(line)
    assert.equal(cjson.null, message.fault)
    assert.equal(encoding, message.encoding)
    assert.is_nil(found[message.fields.request_id])
    found[message.fields.request_id] = message.fields.code .. " " .. message.fields.body
  end
  return found
end

local REQUESTS = table.concat({ text("1", "GET", "/hello"), text('"two"', "STORE", "/echo", "[9007199254740993,[],{}]"),
  text("3.50", "GET", "/slow"), text("4", "GET", "/nowhere") }, "\n") .. "\n"
local ANSWERS = { ["1"] = '200 {"msg":"Hello World!"}', ['"two"'] = "200 [9007199254740993,[],{}]", ["3.50"] = "200 null",
  ["4"] = "404 null" }

-- Has the Python korv make calls, and returns its responses by request_id (decoded), and how many there were.
local function call_from_python(server, calls, ...)
  local input = {}
  for i, call in ipairs(calls) do
    input[i] = cjson.encode(call) .. "\n"
  end
  local done = support.run({ support.python, support.root .. "/spec/peers/python_korv.py", "client", "--port", tostring(server.port),
    "--key", support.key "client", ... }, { stdin = table.concat(input) })
  assert(done.code == 0, done.stderr)
  local found = lines_of(done.stdout)
  for i, line in ipairs(found) do
    found[i] = cjson.decode(line)
  end
  return found
end

describe("a korv server and", function()
  local server

  setup(function() server = support.serve "spec/data/app.lua" end)
  teardown(support.finish)

  describe("OpenSSH", function()
    it("ssh -s HOST korv < requests.jsonl gets every answer", function()
      local done = support.run(ssh(server, "-s", "127.0.0.1", "korv"), { stdin = REQUESTS })
      assert.equal("", done.stderr)
      assert.same(ANSWERS, responses_in(done.stdout, "line"))
    end)

    it("ssh -s takes gzip too", function()
      local done = support.run(ssh(server, "-s", "127.0.0.1", "korv"), { stdin = messages("pack", REQUESTS) })
      assert.same(ANSWERS, responses_in(done.stdout, "gzip"))
    end)

    it("ssh -W takes lines", function()
      local done = support.run(ssh(server, "-W", "anywhere:1", "127.0.0.1"), { stdin = REQUESTS })
      assert.same({ 0, "" }, { done.code, done.stderr })
      assert.same(ANSWERS, responses_in(done.stdout, "line"))
    end)

    it("ssh -W takes gzip", function()
      local done = support.run(ssh(server, "-W", "anywhere:1", "127.0.0.1"), { stdin = messages("pack", REQUESTS) })
      assert.same({ 0, "" }, { done.code, done.stderr })
      assert.same(ANSWERS, responses_in(done.stdout, "gzip"))
    end)

    it("ssh -s gets every answer of ten thousand requests", function()
      local requests = {}
      for id = 1, 10000 do
        requests[id] = text(tostring(id), "GET", "/echo", tostring(id))
      end
      local done = support.run(ssh(server, "-s", "127.0.0.1", "korv"), { stdin = table.concat(requests, "\n") .. "\n" })
      local answers = responses_in(done.stdout, "line")
      for id = 1, 10000 do
        assert.equal("200 " .. id, answers[tostring(id)])
      end
    end)

    it("several channels share one connection (ControlMaster)", function()
      local control = support.path "control"
      local master = support.start(ssh(server, "-M", "-S", control, "-N", "127.0.0.1"))
      local function ready()
        return support.run(ssh(server, "-S", control, "-O", "check", "127.0.0.1")).code == 0 or master:ended()
      end
      assert.is_true(support.wait_for(ready), master:describe "is no master")
      local channels = {}
      for i = 1, 4 do
        local way = i == 4 and { "-W", "anywhere:1", "127.0.0.1" } or { "-s", "127.0.0.1", "korv" }
        channels[i] = support.start(ssh(server, "-S", control, table.unpack(way)), { stdin = REQUESTS })
      end
      for _, channel in ipairs(channels) do
        assert.same(ANSWERS, responses_in(channel:wait().stdout, "line"))
      end
      support.run(ssh(server, "-S", control, "-O", "exit", "127.0.0.1"))
      master:wait()
    end)

    it("a key that is not authorized is refused", function()
      local done = support.run(ssh_as("stranger", server, "-s", "127.0.0.1", "korv"), { stdin = REQUESTS })
      assert.same({ 255, "" }, { done.code, done.stdout })
      assert.truthy(done.stderr:find "Permission denied", done.stderr)
    end)
  end)

  describe("the Python korv's client", function()
    it("get along, on one channel, each response a packet", function()
      local found = call_from_python(server, {
        { verb = "GET", resource = "/hello", raw_id = "1795330870.6222768" },
        { verb = "STORE", resource = "/echo", body = { "a", "b" }, raw_id = "18446744073709551615" },
        { verb = "UPDATE", resource = "/echo", body = "ü", raw_id = '"a\\"b"' },
        { verb = "DELETE", resource = "/echo", raw_id = "1e3" },
        { verb = "GET", resource = "/slow" },
        { verb = "GET", resource = "/nowhere" },
        { verb = "GET", resource = "/error" },
      })
      assert.equal(7, #found)
      local codes = {}
      for _, each in ipairs(found) do
        assert.is_nil(each.broken)
        codes[each.response.code] = (codes[each.response.code] or 0) + 1
      end
      assert.same({ [200] = 5, [404] = 1, [500] = 1 }, codes)
    end)

    it("gets as long an answer as the packet size that it asks for", function()
      local calls = { { verb = "GET", resource = "/noise", body = 60000, raw_id = "1" } }
      local found = call_from_python(server, calls, "--max-packet-size", "131072")
      assert.equal(1, #found)
      assert.equal(60000, #found[1].response.body)
    end)
  end)
end)

describe("a Python korv server and", function()
  local server

  setup(function() server = support.serve_python() end)
  teardown(support.finish)

  it("the Python korv's client: the specs' own peers, flaws and all", function()
    local found = call_from_python(server, { { verb = "GET", resource = "/hello", raw_id = "1795330870.6222768" },
      { verb = "STORE", resource = "/echo", body = "saved", raw_id = "2" } })
    local codes = {}
    for i, each in ipairs(found) do
      codes[i] = each.text:gsub('.*"request_id":([^,]+),"code":(%d+).*', "%1 %2")
    end
    table.sort(codes)
    assert.same({ "0 400", "1795330870.6222768 200", "2 200" }, codes)
  end)

  it("raw_channel.py: no session channel, one packet one message", function()
    local peer = assert(raw_channel.connect(server))
    assert.is_nil(peer:try_open "subsystem:korv")
    local channel = peer:open_as(raw_channel.pairings[1])
    local hello = text("1", "GET", "/hello")
    assert.equal(200, channel:ask(hello).code)
    channel:send(channel:message(hello) .. channel:message(hello))
    assert.equal(400, channel:expect(1)[1].code)
    channel:send_split(channel:message(hello), { 10 })
    assert.same({ 400, 400 }, { channel:expect(1)[1].code, channel:expect(1)[1].code })
    channel:finish()
  end)

  it("ssh -W with gzip", function()
    local done = support.run(ssh(server, "-W", "anywhere:1", "127.0.0.1"), { stdin = messages("pack", text("1", "GET", "/hello") .. "\n") })
    assert.same({ ["1"] = '200 {"msg":"Hello World!"}' }, responses_in(done.stdout, "gzip"))
  end)

  describe("korv call", function()
    local known_hosts

    setup(function() known_hosts = support.known_hosts(server, "call_known_hosts") end)

    local function call(port, options, ...)
      return support.run({ support.korv, "call", "-i", support.key "client", "--known-hosts", options.known_hosts or known_hosts,
        table.unpack { options.flag or "--timeout=10", "127.0.0.1:" .. port, ... } }, options)
    end

    it("prints the body's JSON", function()
      local done = call(server.port, {}, "GET", "/hello")
      assert.same({ 0, '{"msg":"Hello World!"}\n' }, { done.code, done.stdout }, done.stderr)
    end)

    it("passes over the spurious 400 of STORE and UPDATE", function()
      for _, verb in ipairs { "STORE", "UPDATE" } do
        local done = call(server.port, {}, verb, "/echo", "[9007199254740993,[],{}]")
        assert.same({ 0, "[9007199254740993,[],{}]\n" }, { done.code, done.stdout }, done.stderr)
      end
    end)

    it("reads the body from stdin where it is -", function()
      local done = call(server.port, { stdin = '{"from":\n"stdin"}\n' }, "STORE", "/echo", "-")
      assert.same({ 0, '{"from":"stdin"}\n' }, { done.code, done.stdout }, done.stderr)
    end)

    it("sends a message that just fits a packet as one", function()
      local body = {}
      for i = 1, 3500 do
        body[i] = math.random(1 << 52, 1 << 53)
      end
      local json = "[" .. table.concat(body, ",") .. "]"
      local packed = #messages("pack", text("1", "STORE", "/echo", json) .. "\n")
      assert.is_true(packed > 25000 and packed < 31000, packed)
      local done = call(server.port, { stdin = json }, "STORE", "/echo", "-")
      assert.same({ 0, true }, { done.code, done.stdout == json .. "\n" }, done.stderr)
    end)

    it("says what is not 2xx on stderr, and its first digit with the exit status", function()
      local missing = call(server.port, {}, "GET", "/nowhere")
      assert.same({ 4, "", "404 null\n" }, { missing.code, missing.stdout, missing.stderr })
      local failed = call(server.port, {}, "GET", "/fail")
      assert.same({ 5, "" }, { failed.code, failed.stdout })
      assert.truthy(failed.stderr:find '^500 {.*"boom"', failed.stderr)
    end)

    it("says why a connection failed, with exit status 1", function()
      local done = call(1, {}, "GET", "/hello")
      assert.same({ 1, "" }, { done.code, done.stdout })
      assert.truthy(done.stderr:lower():find "refused", done.stderr)
    end)

    it("refuses a host that it does not know, and names its fingerprint", function()
      local path = support.path "new_known_hosts"
      local done = call(server.port, { known_hosts = path }, "GET", "/hello")
      assert.same({ 1, "" }, { done.code, done.stdout })
      assert.truthy(done.stderr:find(support.fingerprint(server.host_key), 1, true), done.stderr)
      assert.is_nil(support.read(path))
    end)

    it("adds a host's key with --accept-new, and knows it from then on", function()
      local path = support.path "accepted_known_hosts"
      local first = call(server.port, { known_hosts = path, flag = "--accept-new" }, "GET", "/hello")
      assert.same({ 0, '{"msg":"Hello World!"}\n' }, { first.code, first.stdout }, first.stderr)
      local second = call(server.port, { known_hosts = path }, "GET", "/hello")
      assert.same({ 0, '{"msg":"Hello World!"}\n' }, { second.code, second.stdout }, second.stderr)
      local found = support.run { "ssh-keygen", "-F", ("[127.0.0.1]:%d"):format(server.port), "-f", path }
      assert.equal(0, found.code, "OpenSSH does not find the host in what was written")
    end)

    it("never takes a changed key, not even with --accept-new, and says so", function()
      local other = { port = server.port, host_key = support.key "other_host" }
      local path = support.known_hosts(other, "changed_known_hosts")
      local before = support.read(path)
      for _, flag in ipairs { "--accept-new", "--timeout=10" } do
        local done = call(server.port, { known_hosts = path, flag = flag }, "GET", "/hello")
        assert.same({ 1, "" }, { done.code, done.stdout })
        assert.truthy(done.stderr:lower():find "changed", done.stderr)
        assert.truthy(done.stderr:find(support.fingerprint(server.host_key), 1, true), done.stderr)
      end
      assert.equal(before, support.read(path))
    end)
  end)
end)
