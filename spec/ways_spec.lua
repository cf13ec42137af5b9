--- One table of calls through every SSH client that Debian packages: OpenSSH, dropbear's dbclient, PuTTY's plink, asyncssh and paramiko.
-- A client may lose nothing, complain of nothing on its stderr, wait for nothing, and has to end with the status that the server sent.

local asked = require "spec.asked"
local cjson = require "cjson"
local korv = require "korv"
local pair = require "spec.pair"
local support = require "spec.support"

local MIB = 1024 * 1024
local ADDRESS = "anybody@127.0.0.1"

local gates = {} -- of /gate: functions that let it go on
local modern, compatible -- servers

local function add_endpoints(app)
  app:get("/hello", function() return 200, { msg = "Hello World!" } end)
  for _, verb in ipairs { "GET", "STORE", "UPDATE", "DELETE" } do
    app:add_callback(verb, "/verb", function(request) return 200, { request.verb, request.body } end)
  end
  app:get("/items", function(request)
    for i = 1, request.body do request:send(("%04d"):format(i):rep(256)) end
    return 200, "all"
  end)
  app:get("/gate", function(request)
    request:send(1)
    korv.await(function(resume) gates[#gates + 1] = resume end)
    return 200
  end)
  return asked.add_endpoints(app)
end

-- The clients: what each is called with, from a server, a way ("exec", "subsystem") and a command or a subsystem's name. Each knows the
-- server's key and takes no other. Where they keep files at home, that is the specs' folder.
local function openssh(at, way, text)
  return support.ssh(at, {}, table.unpack(way == "subsystem" and { "-s", ADDRESS, text } or { ADDRESS, "--", text }))
end

local function dbclient(at, way, text)
  return { "dbclient", "-p", tostring(at.port), "-i", support.path "client.dropbear",
    table.unpack(way == "subsystem" and { "-s", ADDRESS, text } or { ADDRESS, text }) }
end

local function plink(at, way, text)
  return { "plink", "-ssh", "-batch", "-P", tostring(at.port), "-i", support.path "client.ppk", "-hostkey",
    support.fingerprint(at.host_key), table.unpack(way == "subsystem" and { "-s", ADDRESS, text } or { ADDRESS, text }) }
end

local function python(script)
  return function(at, way, text)
    return { support.python, support.root .. "/spec/peers/" .. script, tostring(at.port), support.key "client", at.known_hosts, way, text }
  end
end

local CLIENTS = {
  OpenSSH = { command = openssh },
  dbclient = { command = dbclient },
  plink = { command = plink },
  asyncssh = { command = python "asyncssh_run.py" },
  paramiko = { command = python "paramiko_run.py", old_ciphers = true },
}

local function must_run(...)
  local done = support.run { ... }
  assert(done.code == 0, done:describe "failed")
end

-- The client's key in the forms that dbclient and plink read, and the server's where dbclient looks for it, which knows no ports.
local function make_keys()
  must_run("dropbearconvert", "openssh", "dropbear", support.key "client", support.path "client.dropbear")
  must_run("puttygen", support.key "client", "-O", "private", "-o", support.path "client.ppk")
  must_run("mkdir", support.path ".ssh")
  support.write(".ssh/known_hosts", "127.0.0.1 " .. support.read(support.key "host" .. ".pub"):match "^%S+ %S+" .. "\n")
end

local function new(options)
  local server = pair.listen(add_endpoints(pair.new_server(options)))
  server.known_hosts = support.known_hosts(server, "known_" .. server.port)
  return server
end

local function start(name, way, text, stdin)
  local client = CLIENTS[name]
  local argv = client.command(client.old_ciphers and compatible or modern, way, text)
  return support.start(argv, { stdin = stdin, env = { HOME = support.path "" } })
end

-- Calls done(process, name) for every client, after all of them were started.
local function through_all(way, text, stdin, done)
  local processes = {}
  for name in pairs(CLIENTS) do processes[name] = start(name, way, text, stdin) end
  for name, process in pairs(processes) do done(process, name) end
end

local function lines_of(text)
  local lines = {}
  for line in text:gmatch "[^\n]+" do lines[#lines + 1] = line end
  return lines
end

local function items(count)
  local lines = {}
  for i = 1, count do lines[i] = '"' .. ("%04d"):format(i):rep(256) .. '"\n' end
  return table.concat(lines) .. '"all"\n'
end

-- A call: what is asked, what is there to be read on stdin (true: it stays open, with nothing in it), status, stdout and stderr.
local CALLS = {
  { "GET /hello", nil, 0, '{"msg":"Hello World!"}\n' },
  { "GET /hello", true, 0, '{"msg":"Hello World!"}\n' },
  { "DELETE /verb", ("x"):rep(8 * MIB), 0, '["DELETE"]\n' }, -- nobody reads it
  { "get /verb", nil, 0, '["GET"]\n' },
  { "STORE /verb [7]", nil, 0, '["STORE",[7]]\n' },
  { "UPDATE /verb {\"a\": 1}", true, 0, '["UPDATE",{"a":1}]\n' },
  { "STORE /same", '{"a":\n[1,\n2]}\n', 0, '{"a":[1,2]}\n' },
  { "DELETE /verb -", '"from stdin"', 0, '["DELETE","from stdin"]\n' },
  { "STORE /same", "", 4, "", "400 {\"message\":\"Missing 'body'\"}\n" },
  { "STORE /length", '"' .. ("x"):rep(8 * MIB) .. '"', 0, 8 * MIB .. "\n" },
  { "STORE /length", ("x"):rep(17 * MIB), 4, "",
    '413 {"message":"Message too large","detail":"a message has at most 16777216 bytes"}\n' },
  { "GET /long " .. 8 * MIB, nil, 0, '"' .. ("x"):rep(8 * MIB) .. '"\n' },
  { "GET /fails " .. 8 * MIB, nil, 5, "", '507 "' .. ("x"):rep(8 * MIB) .. '"\n' },
  { "GET /items 2000", nil, 0, items(2000) },
  { "GET /breaks", nil, 5, "1\n", '507 "full"\n' },
  { "GET /nowhere", nil, 4, "", "404 null\n" },
  { "help /hell", nil, 0, "  GET     /hello\n" },
  { "uname -a", true, 64, "", "korv: there is no command 'uname' here\nusage: ssh HOST VERB RESOURCE [BODY]    VERB is GET, STORE, UPDATE "
    .. "or DELETE\n       ssh HOST help [RESOURCE]\n" },
}

for _, body in ipairs { "null", "false", "9007199254740993", "-2.0", '"text"', '"it\'s \\"quoted\\" ü\\u0000\\n"', "[]",
  "{}", '[[],{},{"a":[null]}]' } do
  CALLS[#CALLS + 1] = { "STORE /same " .. body, nil, 0, body .. "\n" }
end

for _, code in ipairs { 100, 204, 299, 302, 400, 499, 500, 599 } do
  local body, good = ('{"code":"%d"}\n'):format(code), code // 100 == 2
  CALLS[#CALLS + 1] = { "GET /code/" .. code, nil, good and 0 or code // 100, good and body or "", not good and code .. " " .. body or "" }
end

-- Like assert.same, but it does not print megabytes.
local function check(process, name, status, stdout, stderr)
  process:wait()
  if process.code == status and process.stdout == stdout and process.stderr == stderr then return end
  error(("%s: status %d and %d bytes were to come, but it %s"):format(name, status, #stdout + #stderr,
    process:describe("ended"):sub(1, 4000)), 2)
end

local function name_of(call)
  local text, stdin = call[1], call[2]
  if not stdin then return text end
  return ("%s (%s)"):format(text, stdin == true and "stdin stays open" or #stdin .. " bytes on stdin")
end

describe("OpenSSH, dbclient, plink, asyncssh and paramiko:", function()
  setup(function()
    pair.begin()
    make_keys()
    modern, compatible = new(), new { ciphers = "compatible" }
  end)
  before_each(function() gates, asked.left = {}, 0 end)
  teardown(pair.finish)

  for _, call in ipairs(CALLS) do
    it(name_of(call), function()
      local text, stdin, status, stdout, stderr = table.unpack(call, 1, 5)
      through_all("exec", text, stdin, function(process, name) check(process, name, status, stdout, stderr or "") end)
    end)
  end

  it("the items of a stream as they come", function()
    local processes = {}
    through_all("exec", "GET /gate", nil, function(process, name)
      assert.equal("1", process:line(), name)
      assert.is_nil(process.code, name)
      processes[name] = process
    end)
    for _, go_on in ipairs(gates) do go_on() end
    for name, process in pairs(processes) do check(process, name, 0, "", "") end
  end)

  for _, signal in ipairs { "sigint", "sigkill" } do
    it("an endpoint is cancelled when its client ends by " .. signal, function()
      local count = 0
      through_all("exec", "GET /forever", true, function(process, name)
        assert.equal('"begun"', process:line(), name)
        process.handle:kill(signal)
        count = count + 1
        pair.wait_for(function() return asked.left == count end, function() return process:describe "did not cancel" end)
        process:wait()
      end)
      assert.equal(5, count)
    end)
  end

  it("messages over the subsystem", function()
    local requests = {}
    for id = 1, 100 do requests[id] = ('{"id":%d,"verb":"STORE","resource":"/same","body":[%d,null,{}]}\n'):format(id, id) end
    through_all("subsystem", "korv", table.concat(requests), function(process, name)
      process:wait()
      assert.same({ 0, "" }, { process.code, process.stderr }, name)
      local lines = lines_of(process.stdout)
      assert.equal(100, #lines, name)
      for _, line in ipairs(lines) do
        local answer = cjson.decode(line)
        assert.same({ 200, { answer.request_id, cjson.null, {} } }, { answer.code, answer.body }, name)
      end
    end)
  end)

  it("a cipher that paramiko knows is there only where the server's option says so", function()
    local argv = CLIENTS.paramiko.command(modern, "exec", "GET /hello")
    local done = support.run(argv)
    assert.equal(1, done.code)
    assert.truthy(done.stderr:find("no acceptable ciphers", 1, true), done.stderr)
  end)
end)

describe("a console", function()
  local GREETING = { "You are ", "endpoints for you: help lists them", "korv> " }

  setup(function()
    pair.begin()
    make_keys()
    modern = new()
  end)
  teardown(pair.finish)

  -- Greets, answers, and ends when it is told to; its input stays open.
  local function try(argv)
    local process = support.start(argv, { stdin = true, env = { HOME = support.path "", TERM = "dumb" } })
    local function appears(text)
      local function found() return process.stdout:find(text, 1, true) end
      pair.wait_for(found, function() return process:describe("does not say " .. text) end)
    end
    for _, text in ipairs(GREETING) do appears(text) end
    process:write "GET /hello\r"
    appears "Hello World!"
    appears "200 in"
    process:write "exit\r"
    process:wait()
    assert.equal(0, process.code)
  end

  local function without_command(client)
    local argv = client(modern, "exec", "")
    argv[#argv] = nil
    return argv
  end

  it("through plink", function()
    local argv = without_command(plink)
    table.insert(argv, 2, "-t")
    try(argv)
  end)

  it("through dbclient, which wants a terminal of its own", function()
    try { "script", "--quiet", "--return", "--command", table.concat(without_command(dbclient), " "), "/dev/null" }
  end)
end)
