--- korv describe: what it prints of a server, and of one that does not describe itself.

local commanding = require "spec.commanding"
local korv = require "korv"
local support = require "spec.support"

local assert_complains = commanding.assert_complains

describe("korv describe", function()
  local server

  setup(function() server = commanding.serve(commanding.script()) end)
  teardown(support.finish)

  local function describe_(...) return support.run(commanding.argv(server, "describe", ...)) end

  it("prints verbs, resources and what they are for, in columns, with nothing that a terminal obeys", function()
    local done = describe_()
    local wanted = "GET     /users/:näme  Tells of a [31m user, whoever.\\xc2\\x9b1m\\xe2\\x80\\xae\nDELETE  /x\n"
      .. "STORE   /y            Of ops  [roles: ops, on call ]\nGET     /z            [roles: ops]\n"
    assert.same({ 0, wanted, "" }, { done.code, done.stdout, done.stderr })
    done = describe_("--prefix", "/none/")
    assert.same({ 0, "", "" }, { done.code, done.stdout, done.stderr })
  end)

  it("prints what the server answered with --json", function()
    local done = describe_ "--json"
    assert.same({ 0, "" }, { done.code, done.stderr })
    assert.equal("DELETE", korv.json.decode(done.stdout)[2].verb)
    assert.same({ 0, "[1]\n" }, { describe_("--json", "--prefix", "/odd").code, describe_("--json", "--prefix", "/odd").stdout })
  end)

  it("says so where a server does not describe itself", function()
    assert_complains(describe_("--prefix", "/nowhere"), 4, "127.0.0.1:" .. server.port, "GET /nowhere/endpoints", "--prefix")
    assert_complains(describe_("--prefix", "/odd"), 1, "GET /odd/endpoints", "--json")
    local done = describe_("--prefix", "/barred")
    assert.same({ 4, "", '403 {"message":"not for you"}\n' }, { done.code, done.stdout, done.stderr })
  end)

  it("says so of the first korv's server, in Python", function()
    local python = support.serve_python()
    assert_complains(support.run(commanding.argv(python, "describe")), 4, "GET /korv/endpoints", "another korv")
  end)
end)
