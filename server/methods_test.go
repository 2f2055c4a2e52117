package server_test

import (
	"io"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/reflection/grpc_reflection_v1alpha"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/keysidecar/keysidecar/policy"
	keysidecarv1 "github.com/keysidecar/keysidecar/proto/keysidecar/v1"
	"github.com/keysidecar/keysidecar/server"
)

// verbs is the table of server/methods.go, written a second time.
const verbs = `
/grpc.health.v1.Health/Check unknown verb
/grpc.health.v1.Health/List unknown verb
/grpc.health.v1.Health/Watch unknown verb
/grpc.reflection.v1.ServerReflection/ServerReflectionInfo unknown verb
/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo unknown verb
/keysidecar.v1.AdminService/Evict admin.evict
/keysidecar.v1.AdminService/GetPolicy admin.policy
/keysidecar.v1.AdminService/GetStatus admin.status
/keysidecar.v1.AdminService/ListTenants admin.tenants
/keysidecar.v1.AdminService/Reload admin.reload
/keysidecar.v1.AdminService/ResumeTenant admin.suspend
/keysidecar.v1.AdminService/SuspendTenant admin.suspend
/keysidecar.v1.SealService/Seal seal
/keysidecar.v1.SealService/Unseal unseal
`

// files are the .proto files with the services that a Server may answer: all
// of ours, whichever file a service is added to.
func files() []protoreflect.FileDescriptor {
	all := []protoreflect.FileDescriptor{
		grpc_health_v1.File_grpc_health_v1_health_proto,
		grpc_reflection_v1.File_grpc_reflection_v1_reflection_proto,
		grpc_reflection_v1alpha.File_grpc_reflection_v1alpha_reflection_proto,
	}
	protoregistry.GlobalFiles.RangeFilesByPackage("keysidecar.v1", func(f protoreflect.FileDescriptor) bool {
		all = append(all, f)
		return true
	})
	return all
}

// TestEveryMethodHasItsVerb walks what the .proto files declare.
func TestEveryMethodHasItsVerb(t *testing.T) {
	known := server.Methods()
	var lines []string
	for _, file := range files() {
		for i := range file.Services().Len() {
			service := file.Services().Get(i)
			for j := range service.Methods().Len() {
				full := "/" + string(service.FullName()) + "/" + string(service.Methods().Get(j).Name())
				verb, ok := known[full]
				if !ok {
					t.Errorf("%s has no verb", full)
				}
				if strings.HasSuffix(string(service.FullName()), "AdminService") != verb.Admin() {
					t.Errorf("%s needs the verb %v", full, verb)
				}
				lines = append(lines, full+" "+verb.String()+"\n")
				delete(known, full)
			}
		}
	}
	slices.Sort(lines)
	if diff := cmp.Diff(verbs, "\n"+strings.Join(lines, "")); diff != "" {
		t.Errorf("methods and verbs (-want +got):\n%s", diff)
	}
	if len(known) > 0 {
		t.Errorf("verbs of methods that do not exist: %v", known)
	}
}

// TestEveryVerbIsUsed finds a verb that rules may name and that allows nothing.
func TestEveryVerbIsUsed(t *testing.T) {
	used := slices.Collect(maps.Values(server.Methods()))
	for _, v := range policy.Verbs() {
		if !slices.Contains(used, v) {
			t.Errorf("no method needs the verb %v", v)
		}
	}
}

// TestCheckMethods adds methods that have no verb to one that has.
func TestCheckMethods(t *testing.T) {
	const ours = "keysidecar.v1.SealService"
	with := func(service string, methods ...string) map[string]grpc.ServiceInfo {
		all := map[string]grpc.ServiceInfo{ours: {Methods: []grpc.MethodInfo{{Name: "Seal"}}}}
		var info grpc.ServiceInfo
		for _, m := range methods {
			info.Methods = append(info.Methods, grpc.MethodInfo{Name: m})
		}
		all[service] = info
		return all
	}
	if err := server.CheckMethods(with(ours, "Seal", "Unseal")); err != nil {
		t.Errorf("methods that have verbs: %v", err)
	}
	for _, all := range []map[string]grpc.ServiceInfo{
		with(ours, "Seal", "Peek"), with("keysidecar.v2.SealService", "Seal"), with("keysidecar.v1.Other", "Seal"), with(ours, "seal"),
	} {
		if err := server.CheckMethods(all); err == nil || !strings.Contains(err.Error(), "has no verb") {
			t.Errorf("%v passed: %v", all, err)
		}
	}
}

// TestOnlyItsOwnServices shows that the socket of the data has no admin
// methods, and that of the admin no data.
func TestOnlyItsOwnServices(t *testing.T) {
	cfg := config(t, answer(echo), io.Discard)
	admin := cfg
	admin.Sealer, admin.Admin = nil, keysidecarv1.UnimplementedAdminServiceServer{}
	reflecting := cfg
	reflecting.Reflection = true
	for _, c := range []struct {
		cfg  server.Config
		want []string
	}{
		{cfg, []string{"grpc.health.v1.Health", "keysidecar.v1.SealService"}},
		{admin, []string{"grpc.health.v1.Health", "keysidecar.v1.AdminService"}},
		{reflecting, []string{
			"grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection",
			"keysidecar.v1.SealService",
		}},
	} {
		s, err := server.New(c.cfg)
		if err != nil {
			t.Fatal(err)
		}
		s.Close()
		if diff := cmp.Diff(c.want, slices.Sorted(maps.Keys(s.Registered()))); diff != "" {
			t.Errorf("services (-want +got):\n%s", diff)
		}
	}
}
