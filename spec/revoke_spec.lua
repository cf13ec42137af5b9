--- Keys that change while a server serves: who may log in, whose sessions end, and which host key is shown. With one process, and with two
-- workers.

local korv = require "korv"
local pair = require "spec.pair"
local changing = require "spec.changing"
local support = require "spec.support"
local uv = require "luv"

local ENDPOINTS = [[
local korv = require "korv"
return function(app)
  app:get("/hello", function() return 200, "hello" end)
  app:get("/ticks", function(request)
    while true do
      request:send(1)
      korv.sleep(0.01)
    end
  end)
end
]]

local REASON = "the key is no longer authorized"

local server, keys_path, host_key, names

local function text_of(...)
  local lines = {}
  for i, name in ipairs { ... } do lines[i] = support.read(support.key(name) .. ".pub") end
  return table.concat(lines)
end

-- Puts a file in another one's place, as `mv` does.
local function move_into_place(path, text)
  local file = assert(io.open(path .. ".new", "wb"))
  assert(file:write(text))
  assert(file:close())
  uv.fs_chmod(path .. ".new", 384)
  assert(uv.fs_rename(path .. ".new", path))
end

local function write_in_place(path, text)
  local file = assert(io.open(path, "wb"))
  assert(file:write(text))
  assert(file:close())
end

local function authorize(...) move_into_place(keys_path, text_of(...)) end

-- Starts a server of its own files that lets "ann" and "bob" in.
local function begin(more)
  names = (names or 0) + 1
  keys_path, host_key = support.write("authorized" .. names, text_of("ann", "bob")), support.path("host" .. names)
  move_into_place(host_key, support.read(support.key "host"))
  local script = support.write("endpoints.lua", ENDPOINTS)
  if not more.revoke then
    local argv = { "--authorized-keys", keys_path, "--host-key", host_key, table.unpack(more) }
    argv[#argv + 1] = script
    server = changing.command(argv)
  else
    server = changing.program({ authorized_client_keys = keys_path, host_keys = { host_key }, revoke = more.revoke }, script)
  end
end

local function dial_to(one, name) return pair.dial(one, { client_keys = { support.key(name) } }) end
local function dial(name) return dial_to(server, name) end

-- A session with a stream: `over` once that has ended, and why.
local function session(name)
  local client = assert(dial(name))
  local one = { client = client, items = 0 }
  client:stream("GET", "/ticks", nil, function(item, message, problem)
    if item then
      one.items = one.items + 1
    elseif not one.over then
      one.over, one.message, one.name = true, message, problem
    end
  end)
  return one
end

local function assert_goes_on(one)
  local items = one.items
  pair.wait_for(function() return one.over or one.items > items + 3 end)
  assert.is_nil(one.over, one.message)
  assert.equal(200, assert(one.client:get "/hello").code)
end

-- Within a second of what was done.
local function assert_ends(began, ...)
  for _, one in ipairs { ... } do
    pair.wait_for(function() return one.over end, function() return server:describe "has not ended the session" end)
    assert.is_truthy(one.message:find(REASON, 1, true), one.message)
  end
  local seconds = (uv.hrtime() - began) / 1e9
  assert.is_true(seconds < support.patience, ("%.2f s"):format(seconds))
end

-- OpenSSH's own, with a stream.
local function start_ssh(name)
  local ssh = support.start(support.ssh(server, { key = support.key(name) }, "-s", "127.0.0.1", "korv"), { stdin = true })
  ssh:write '{"id":1,"verb":"GET","resource":"/ticks","stream":true}\n'
  pair.wait_for(function() return ssh.stdout:find "\n.*\n" or ssh:ended() end)
  return ssh
end

local function assert_let_in(name, pattern)
  local client, message
  pair.wait_for(function()
    client, message = dial(name)
    return client
  end, function() return server:describe(pattern or message) end)
  assert.equal(200, client:get("/hello").code)
end

local function assert_refused(name)
  local client, _, problem = dial(name)
  assert.same({ nil, "EAUTH" }, { client, problem })
end

for title, more in pairs { ["one process"] = {}, ["two workers"] = { "--workers", "2" } } do
  describe("keys that change, with " .. title .. ":", function()
    setup(pair.begin)
    before_each(function() begin(more) end)
    -- All of its processes have logged it.
    local function logged(pattern) changing.logged(server, pattern, tonumber(more[2]) or 1) end

    after_each(function()
      server.must_end_well = nil
      assert.is_true(server:stop(), server:describe "did not end well")
    end)
    teardown(pair.finish)

    it("one that is gone loses its sessions within a second, and is told why; the others stay", function()
      local ann, bob, bob_again, ann_again = session "ann", session "bob", session "bob", session "ann"
      local ssh = start_ssh "bob"
      for _, one in ipairs { ann, bob, bob_again, ann_again } do assert_goes_on(one) end
      local began = uv.hrtime()
      authorize "ann"
      assert_ends(began, bob, bob_again)
      assert.equal(255, ssh:wait().code)
      assert.is_truthy(ssh.stderr:find(REASON, 1, true), ssh.stderr)
      for _, one in ipairs { ann, ann_again } do assert_goes_on(one) end
      local nothing, message = bob.client:get "/hello"
      assert.is_nil(nothing)
      assert.is_truthy(message:find(REASON, 1, true), message)
      assert_refused "bob"
      changing.logged(server, pair.literal("the key " .. support.fingerprint(support.key "bob") .. " of bob is no longer authorized"))
    end)

    it("one that is added lets in", function()
      assert_refused "cleo"
      write_in_place(keys_path, text_of("ann", "bob", "cleo"))
      assert_let_in "cleo"
    end)

    it("a broken line is told, and refuses only itself", function()
      local ann, bob = session "ann", session "bob"
      local began = uv.hrtime()
      authorize("ann", "cleo")
      assert_ends(began, bob)
      move_into_place(keys_path, (text_of("bob", "ann"):gsub("AAAA", "AAAB", 1)))
      logged("warn .*" .. pair.literal(keys_path .. ":1: "))
      assert_goes_on(ann)
      assert_refused "bob"
      assert_refused "cleo"
      assert_let_in "ann"
    end)

    it("a file that has vanished changes nothing", function()
      local ann = session "ann"
      assert(os.remove(keys_path))
      logged("error .*the authorized keys stay as they were: " .. pair.literal(keys_path) .. " does not exist")
      assert_goes_on(ann)
      assert_let_in "bob"
      local began = uv.hrtime()
      authorize "bob"
      assert_ends(began, ann)
    end)

    it("an emptied file lets nobody in", function()
      local ann, bob = session "ann", session "bob"
      local began = uv.hrtime()
      write_in_place(keys_path, "")
      assert_ends(began, ann, bob)
      assert_refused "ann"
      authorize "ann"
      assert_let_in "ann"
    end)

    it("a new host key is shown to the next connection, and open sessions stay", function()
      local ann, known = session "ann", support.known_hosts(server, "known_before")
      move_into_place(host_key, support.read(support.key "next_host"))
      logged("the host keys have changed")
      pair.wait_for(function()
        local scan = support.run { "ssh-keyscan", "-p", tostring(server.port), "-t", "ed25519", "127.0.0.1" }
        return scan.stdout:find(support.read(support.key "next_host" .. ".pub"):match "^%S+ %S+", 1, true)
      end)
      local ssh = support.run(support.ssh(server, { key = support.key "ann", known_hosts = known }, "-s", "127.0.0.1", "korv"))
      assert.equal(255, ssh.code)
      assert.is_truthy(ssh.stderr:find("HOST IDENTIFICATION HAS CHANGED", 1, true), ssh.stderr)
      assert_goes_on(ann)
      server.host_key = support.key "next_host"
      assert_let_in "bob"
    end)

    it("a host key that cannot be used changes nothing", function()
      local ann = session "ann"
      move_into_place(host_key, "not a key\n")
      logged("error .*the host keys stay as they were: host key " .. pair.literal(host_key))
      assert_goes_on(ann)
      assert_let_in "bob"
    end)
  end)

  describe("keys that change unwatched, with " .. title .. ":", function()
    setup(pair.begin)
    teardown(pair.finish)

    it("all of that at SIGHUP only", function()
      begin { "--no-watch", table.unpack(more) }
      local ann, bob = session "ann", session "bob"
      authorize("ann", "cleo")
      move_into_place(host_key, support.read(support.key "next_host"))
      assert.is_false(support.wait_for(function() return bob.over or false end, 0.3))
      assert_refused "cleo"
      local began = uv.hrtime()
      assert.equal(0, uv.kill(server.pid, "sighup"))
      assert_ends(began, bob)
      changing.logged(server, "the host keys have changed", tonumber(more[2]))
      server.host_key = support.key "next_host"
      assert_let_in "cleo"
      assert_goes_on(ann)
    end)
  end)
end

describe("the option revoke = \"keep\"", function()
  setup(pair.begin)
  teardown(pair.finish)

  it("leaves sessions to those whose key is gone, and lets them in no more", function()
    begin { revoke = "keep" }
    local bob = session "bob"
    authorize("ann", "cleo")
    assert_let_in "cleo"
    assert_goes_on(bob)
    assert_refused "bob"
  end)
end)

describe("a function in place of authorized keys", function()
  setup(pair.begin)
  teardown(pair.finish)

  it("that fails when it is asked again costs those it was asked about their sessions, as it would refuse them", function()
    local gone = {}
    local own = assert(korv.server {
      host = "127.0.0.1", port = 0, host_keys = { support.key "host" },
      authorize = function(key)
        if gone[key.fingerprint] then error "no such user" end
        return { name = key.fingerprint }
      end,
    })
    own:get("/hello", function() return 200 end)
    pair.listen(own)
    local ann, bob = assert(dial_to(own, "ann")), assert(dial_to(own, "bob"))
    gone[support.fingerprint(support.key "bob")] = true
    own:reload_keys()
    local answer, message = bob:get "/hello"
    assert.is_nil(answer)
    assert.is_truthy(message:find("whether the key may stay could not be found out", 1, true), message)
    pair.wait_for_log "error expel: .*no such user"
    assert.equal(200, ann:get("/hello").code)
    assert.is_nil((dial_to(own, "bob")))
  end)
end)
